//! What a story does with a host, and asks it.

use contract::{
    ApiError, ImageId, OperationId,
    agent::{StagedKernel, VmKernel},
};

use super::{FakeHost, staged};
use crate::fake_kernels::FakeKernels;

impl FakeHost {
    /// From now on the download of this source does not end, until it is released.
    pub fn block(&self, source: &str) {
        self.change(|state| state.blocked.insert(source.into()));
    }

    pub fn release(&self, source: &str) {
        self.change(|state| state.blocked.remove(source));
    }

    /// From now on the source means other content.
    pub fn push(&self, source: &str, content: &str) {
        self.change(|state| state.pushed.insert(source.into(), content.into()));
    }

    /// From now on the download of this source fails.
    pub fn fail(&self, source: &str, error: ApiError) {
        self.change(|state| state.failing.insert(source.into(), error));
    }

    /// From now on this kernel comes along with the source.
    pub fn bundle(&self, source: &str, kernel: StagedKernel, kernels: &FakeKernels) {
        drop(self.inner.kernels.set(kernels.clone()));
        self.change(|state| state.bundled.insert(source.into(), kernel));
    }

    /// The kernel that was taken along to there.
    pub fn taken(&self, to: &str) -> Option<VmKernel> {
        self.change(|state| state.taken.get(to).cloned().flatten())
    }

    pub fn block_renames(&self, blocked: bool) {
        self.change(|state| state.renames_blocked = blocked);
    }

    pub fn set_away(&self, away: bool) {
        self.change(|state| state.away = away);
    }

    /// From now on removals are answered, or not.
    pub fn hang(&self, hanging: bool) {
        self.change(|state| state.hanging = hanging);
    }

    /// How often the download of this source was asked for.
    pub fn asked(&self, source: &str) -> usize {
        self.change(|state| state.asked.get(source).copied().unwrap_or(0))
    }

    /// How many commands were refused while away.
    pub fn refused(&self) -> usize {
        self.change(|state| state.refused)
    }

    /// How many renames are under way.
    pub fn renaming(&self) -> usize {
        self.change(|state| state.renaming)
    }

    pub fn staging(&self) -> Vec<OperationId> {
        self.change(|state| state.staging.keys().copied().collect())
    }

    pub fn images(&self) -> Vec<ImageId> {
        self.change(|state| state.images.keys().copied().collect())
    }

    /// Leaves a staging of an operation there, as if its discard had never come.
    pub fn leave_staging(&self, operation: OperationId) {
        self.change(|state| state.staging.insert(operation, "left".into()));
    }

    /// Leaves an image's directory there that these operations published.
    pub fn leave_image(&self, image: ImageId, makers: &[OperationId]) {
        self.change(|state| {
            state.images.insert(image, staged("left"));
            state.makers.insert(image, makers.to_vec());
        });
    }

    /// The directory is lost.
    pub fn lose(&self, image: ImageId) {
        self.change(|state| state.images.remove(&image));
    }

    /// The directory is back.
    pub fn bring_back(&self, image: ImageId, content: &str) {
        self.change(|state| {
            state.images.insert(image, staged(content));
            state.damaged.remove(&image);
        });
    }

    pub fn damage(&self, image: ImageId) {
        self.change(|state| state.damaged.insert(image));
    }

    pub fn stray(&self, name: &str) {
        self.change(|state| state.strays.push(name.into()));
    }

    pub fn set_age(&self, age_s: u64) {
        self.change(|state| state.age_s = age_s);
    }

    pub fn listed(&self) -> usize {
        self.change(|state| state.listed)
    }
}
