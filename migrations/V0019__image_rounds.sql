-- When the last round of the reconciler began: one that began after a nudge has answered it.
alter table image.reconciler add column began_at timestamptz;
