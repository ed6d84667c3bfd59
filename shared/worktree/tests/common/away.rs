//! A workspace that is away in a VM.

use std::{fs, path::PathBuf};

use contract::worktree::ChangeList;
use worktree::{
    Applied, Base, Captured, Export, Git, Imported, References, Snapshot, Taken, WorktreeError, apply, import_commits,
    private_repository,
};

use super::{Story, export};

/// A workspace in a VM that is a directory.
pub struct Away {
    pub story: Story,
    pub captured: Captured,
    pub base: Base,
    pub references: References,
    pub git: Git,
    pub guest: PathBuf,
    pub exports: usize,
}

impl Away {
    pub fn new(story: Story) -> Self {
        let captured = story.capture();
        let references = References::new(&"web".parse().unwrap(), "/workspace");
        let git = match &captured.repo {
            Some(repo) => repo.git.clone(),
            None => private_repository(&story.dir.path().join("private")).unwrap(),
        };
        let base = Snapshot { git: &git, references: &references }.take(&captured).unwrap();
        references.settle(&git, &base).unwrap();
        let guest = story.place(&captured, "guest");
        Self { story, captured, base, references, git, guest, exports: 0 }
    }

    pub fn export(&mut self) -> (ChangeList, PathBuf) {
        self.exports += 1;
        let quarantine = self.story.dir.path().join(format!("export-{}", self.exports));
        fs::create_dir(&quarantine).unwrap();
        let changes = export(&self.captured.tree, &self.guest, &quarantine);
        // All objects: those that were sent come to nothing.
        let objects = quarantine.join("git");
        fs::create_dir(&objects).unwrap();
        if self.guest.join(".git").exists() {
            let copied =
                std::process::Command::new("cp").arg("-r").arg(self.guest.join(".git/objects")).arg(&objects).status();
            assert!(copied.unwrap().success());
        }
        (changes, quarantine)
    }

    pub fn taken(&mut self) -> (ChangeList, PathBuf, Taken) {
        let (changes, quarantine) = self.export();
        let taken = Export { changes: &changes, quarantine: &quarantine }
            .take(&self.git, &self.references, &self.base)
            .unwrap();
        (changes, quarantine, taken)
    }

    pub fn apply(&mut self) -> Result<Applied, WorktreeError> {
        let (changes, quarantine, taken) = self.taken();
        apply(&self.story.repo, &self.git, &Export { changes: &changes, quarantine: &quarantine }, &taken)
    }

    /// The commits of the VM, brought in.
    pub fn import(&mut self) -> Result<Option<Imported>, WorktreeError> {
        let (changes, quarantine, taken) = self.taken();
        let repo = self.captured.repo.clone().unwrap();
        let export = Export { changes: &changes, quarantine: &quarantine };
        import_commits(&repo, &self.references, &self.base, &export, &taken)
    }
}
