-- What an image is called by was pulled, made or sent from somewhere of its own: two references of one digest are two names of
-- one image. Names from before say what their image says.
alter table image.name add column source text;
alter table image.name add column was_source text;
