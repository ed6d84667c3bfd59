//! The VM of one run: created for it, and gone with it.

use std::time::Duration;

use contract::{
    ApiError, ErrorCode, VmId, VmName,
    change::SetRequest,
    deadline,
    operation::{self, Operation, OperationRef, OperationState},
    vm::{self, CreateRequest, LifecycleRequest},
};

use crate::{
    client::Client,
    commands::vm::set,
    failure::Failure,
    output::{self, Format},
    wait,
};

/// How long a VM stays that nobody uses because its client was killed.
pub const ORPHANED: Duration = Duration::from_secs(15 * 60);

/// A VM that is, or is about to be.
pub struct RunVm<'a> {
    client: &'a Client,
    format: Format,
    /// Its name.
    pub name: VmName,
    id: VmId,
    create: Operation,
}

impl<'a> RunVm<'a> {
    /// Asks for it. From now on it has to be ended.
    pub async fn ask(client: &'a Client, format: Format, request: &CreateRequest) -> Result<Self, Failure> {
        let create = client.change::<vm::Create>(request, deadline::QUICK).await?;
        // By its id, which nobody else's VM of that name has.
        let id = create.resource.strip_prefix("vm:").and_then(|id| id.parse().ok());
        let id = id.ok_or_else(|| ApiError::internal(format!("a create is on {}, which is no VM", create.resource)))?;
        Ok(Self { client, format, name: request.name.clone(), id, create })
    }

    /// What requests call it.
    pub fn vm(&self) -> String {
        self.id.to_string()
    }

    /// Waits until it runs.
    pub async fn runs(&self) -> Result<(), Failure> {
        let ended = wait::shown(self.client, self.create.clone(), self.format).await?;
        wait::succeeded(ended)?;
        Ok(())
    }

    /// Keeps it, also when nobody uses it.
    pub async fn keep(&self) -> Result<(), Failure> {
        let request = SetRequest { idle_seconds: Some(0), ..set::base(self.vm()) };
        let reply = self.client.change::<vm::Set>(&request, deadline::QUICK).await?;
        if let Some(operation) = reply.operation {
            wait::succeeded(wait::shown(self.client, operation, self.format).await?)?;
        }
        Ok(())
    }

    /// Ends what is under way and deletes it; nothing there is fine.
    pub async fn end(&self) -> Result<(), Failure> {
        let create = self.client.ask::<operation::Get>(&OperationRef { id: self.create.id }).await?;
        if !create.state.is_final() {
            self.client.change::<operation::Cancel>(&OperationRef { id: create.id }, deadline::QUICK).await?;
            let ended = wait::shown(self.client, create, self.format).await?;
            if ended.state != OperationState::Succeeded {
                return Ok(());
            }
        } else if create.state != OperationState::Succeeded {
            return Ok(());
        }
        let request =
            LifecycleRequest { vm: self.vm(), force: true, wait: false, timeout_ms: deadline::WAIT_DEFAULT_MS };
        let delete = match self.client.change::<vm::Delete>(&request, deadline::QUICK).await {
            Err(error) if error.code == ErrorCode::NotFound => return Ok(()),
            delete => delete?,
        };
        wait::succeeded(wait::shown(self.client, delete, self.format).await?)?;
        Ok(())
    }

    /// Says how to do what could not be done here.
    pub fn left(&self) {
        output::note(&format!("the VM {} is left: `warren vm rm {}` deletes it", self.name, self.name));
    }
}
