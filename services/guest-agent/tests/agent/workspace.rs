//! Workspaces of an agent without a VM, which are directories of this machine.

use std::{fs, sync::Arc, time::Duration};

use crate::support::{BOUND, Host, agent, shared_with};
use contract::{
    ErrorCode, OperationId,
    guest::{Reply, Request, TransferQuery},
    worktree::{About, ExportOrder, ImportOrder, Placing, RemoveOrder, TransferStatus},
};
use tokio_util::compat::FuturesAsyncReadCompatExt;
use tree::{Limits, StateDir, Tree, decline, download, upload, walk};

const LIMITS: Limits = Limits { entries: 1000, bytes: 1 << 20 };

struct Lab {
    dir: tempfile::TempDir,
    host: Host,
}

impl Lab {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir(dir.path().join("state"));
        let host = Host::connect(agent(&shared_with(state))).await;
        fs::create_dir(dir.path().join("source")).unwrap();
        fs::write(dir.path().join("source/code"), "one\n").unwrap();
        Self { dir, host }
    }

    /// The agent died; a new one has its place.
    async fn restart(&mut self) {
        self.host = Host::connect(agent(&shared_with(StateDir(self.dir.path().join("state"))))).await;
    }

    fn path(&self) -> String {
        self.dir.path().join("ws").display().to_string()
    }

    fn tree(&self) -> Arc<Tree> {
        Arc::new(walk(&self.dir.path().join("source"), |_, _| true).unwrap().tree)
    }

    fn order(&self, epoch: i64) -> ImportOrder {
        ImportOrder {
            operation: OperationId::new(),
            epoch,
            path: self.path(),
            owner: Some("0:0".into()),
            placing: Placing::Swap,
            force: false,
            clean: false,
            about: About::default(),
        }
    }

    async fn import(&self, order: &ImportOrder) -> Result<tree::Sent, tree::SendError> {
        let (stream, reply) = self.host.ask(&Request::Import(order.clone())).await;
        assert_eq!(reply, Reply::Ok);
        upload(stream.compat(), self.tree(), |_| {}).await
    }

    async fn status(&self, operation: OperationId, wait_ms: u64) -> TransferStatus {
        match self.host.ask(&Request::Transfer(TransferQuery { operation, wait_ms })).await.1 {
            Reply::Transfer(status) => status,
            other => panic!("no status: {other:?}"),
        }
    }

    fn export_order(&self, epoch: i64) -> ExportOrder {
        ExportOrder {
            operation: OperationId::new(),
            epoch,
            path: self.path(),
            commits: false,
            advance: true,
            max_bytes: 1 << 20,
            max_entries: 1000,
        }
    }
}

fn code(reply: &Reply) -> Option<ErrorCode> {
    if let Reply::Error(error) = reply { Some(error.code) } else { None }
}

fn failed(status: TransferStatus) -> ErrorCode {
    match status {
        TransferStatus::Failed { error } => error.code,
        other => panic!("not failed: {other:?}"),
    }
}

#[tokio::test]
async fn a_tree_goes_in_and_its_changes_come_out_and_each_is_remembered() {
    let mut lab = Lab::new().await;
    let order = lab.order(1);
    assert_eq!(lab.status(order.operation, 0).await, TransferStatus::Unknown);
    let sent = lab.import(&order).await.unwrap();
    assert_eq!(lab.status(order.operation, 0).await, TransferStatus::Done { summary: sent.summary });
    assert_eq!(code(&lab.host.ask(&Request::Import(order.clone())).await.1), Some(ErrorCode::AlreadyExists));
    assert!(lab.import(&lab.order(2)).await.unwrap().summary.unchanged);
    fs::write(lab.dir.path().join("ws/code"), "two\n").unwrap();
    // Taken, but not accepted: that is a broken stream, and the next export has it again.
    for accepted in [false, true] {
        let export = lab.export_order(3);
        let (stream, reply) = lab.host.ask(&Request::ExportTree(export.clone())).await;
        assert_eq!(reply, Reply::Ok);
        let quarantine = tempfile::tempdir().unwrap();
        let taken = download(stream.compat(), quarantine.path().to_owned(), LIMITS).await.unwrap();
        assert_eq!(taken.changes.changes.len(), 1);
        assert_eq!(fs::read_to_string(quarantine.path().join("tree/code")).unwrap(), "two\n");
        if accepted {
            taken.accept().await.unwrap();
            assert!(matches!(lab.status(export.operation, 0).await, TransferStatus::Done { .. }));
        } else {
            drop(taken);
            assert_eq!(failed(lab.status(export.operation, 20_000).await), ErrorCode::Unavailable);
        }
    }
    // An older claim has nothing to say any more, not even to an agent that was started anew.
    assert_eq!(code(&lab.host.ask(&Request::Import(lab.order(2))).await.1), Some(ErrorCode::Aborted));
    lab.restart().await;
    assert_eq!(lab.status(order.operation, 0).await, TransferStatus::Unknown);
    assert_eq!(code(&lab.host.ask(&Request::Import(lab.order(2))).await.1), Some(ErrorCode::Aborted));
    let forget =
        |force| RemoveOrder { operation: OperationId::new(), epoch: 4, path: lab.path(), keep_files: false, force };
    fs::write(lab.dir.path().join("ws/more"), "").unwrap();
    let refused = lab.host.ask(&Request::Forget(forget(false))).await.1;
    assert_eq!(code(&refused), Some(ErrorCode::FailedPrecondition));
    for _ in 0..2 {
        assert_eq!(lab.host.ask(&Request::Forget(forget(true))).await.1, Reply::Ok);
    }
    assert!(!lab.dir.path().join("ws").exists());
}

#[tokio::test]
async fn a_tree_that_was_placed_when_the_agent_died_is_told_as_done() {
    let mut lab = Lab::new().await;
    let order = lab.order(1);
    let summary = lab.import(&order).await.unwrap().summary;
    // The agent was about to note the second prepare, whose tree stands.
    let state = fs::read_dir(lab.dir.path().join("state")).unwrap().map(|entry| entry.unwrap().path());
    let state = state.into_iter().find(|path| path.is_dir()).unwrap();
    let mut head: serde_json::Value = serde_json::from_slice(&fs::read(state.join("head.json")).unwrap()).unwrap();
    let second = OperationId::new();
    head["generation"] = serde_json::json!(second);
    let step = serde_json::json!({ "clearing": { "next": head } });
    let journal = serde_json::json!({ "path": lab.path(), "staging": ".ws.warren-x", "made": [], "step": step });
    fs::write(state.join("journal.json"), journal.to_string()).unwrap();
    lab.restart().await;
    assert_eq!(lab.status(second, 0).await, TransferStatus::Done { summary });
    assert_eq!(lab.status(order.operation, 0).await, TransferStatus::Unknown);
    let mut again = lab.order(1);
    again.operation = second;
    assert_eq!(code(&lab.host.ask(&Request::Import(again)).await.1), Some(ErrorCode::AlreadyExists));
}

#[tokio::test]
async fn transfers_that_cannot_go_on_end_and_leave_nothing() {
    let lab = Lab::new().await;
    let begin = async |order: &ImportOrder| {
        let (stream, reply) = lab.host.ask(&Request::Import(order.clone())).await;
        assert_eq!(reply, Reply::Ok);
        stream
    };
    // Aborted while it waits for its client.
    let order = lab.order(1);
    let stream = begin(&order).await;
    assert!(matches!(lab.status(order.operation, 0).await, TransferStatus::Running { .. }));
    let abort = Request::AbortTransfer(order.operation);
    let (waited, _) = tokio::join!(lab.status(order.operation, 20_000), lab.host.ask(&abort));
    assert_eq!(failed(waited), ErrorCode::Cancelled);
    drop(stream);
    // Its client goes.
    let order = lab.order(1);
    drop(begin(&order).await);
    assert_eq!(failed(lab.status(order.operation, 20_000).await), ErrorCode::Unavailable);
    // Its client has no tree after all.
    let order = lab.order(1);
    decline(begin(&order).await.compat(), "the directory is gone").await.unwrap();
    let status = lab.status(order.operation, 20_000).await;
    assert!(
        matches!(&status, TransferStatus::Failed { error } if error.message.contains("the directory is gone")),
        "{status:?}"
    );
    // A later claim ends an earlier one's.
    let (first, second) = (lab.order(2), lab.order(3));
    let held = begin(&first).await;
    let sent = tokio::time::timeout(BOUND, lab.import(&second)).await.expect("the second is not held up");
    sent.unwrap();
    assert_eq!(failed(lab.status(first.operation, 0).await), ErrorCode::Cancelled);
    drop(held);
    // What it refuses is told to its client and to whoever asks.
    fs::write(lab.dir.path().join("ws/code"), "two\n").unwrap();
    let order = lab.order(4);
    let refused = lab.import(&order).await.unwrap_err();
    assert!(matches!(&refused, tree::SendError::Refused(why) if why.contains("never exported: code")), "{refused:?}");
    assert_eq!(failed(lab.status(order.operation, 0).await), ErrorCode::FailedPrecondition);
    let mut order = lab.order(4);
    order.owner = Some("no-such-user".into());
    assert_eq!(code(&lab.host.ask(&Request::Import(order)).await.1), Some(ErrorCode::InvalidArgument));
    let beside: Vec<_> = fs::read_dir(lab.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside.len(), 3, "{beside:?}");
    // Whoever gives bytes to an agent that waits in vain does not hold it up.
    tokio::time::timeout(Duration::from_secs(5), lab.status(first.operation, 0)).await.unwrap();
}
