//! What a **build** may ask for, and the **key** by which a step's result is found again.

use contract::{
    ApiError,
    feature::{ENV_BYTES_MAX, ENV_MAX},
    image::{BuildFiles, BuildRequest, BuildStep, INLINE_MAX, SCRIPT_MAX, SCRIPT_SECONDS, STEPS_MAX, TITLE_MAX},
    vm::{CPUS, DISK, MEMORY},
};
use sha2::{Digest, Sha256};

/// Changes when a step of the same content is to be run anew because Warren runs it in another way.
const KEY_VERSION: &[u8] = b"warren build step 1";
/// The longest name of an object, and of its bucket, in bytes.
const OBJECT_MAX: usize = 1024;

/// Refuses a build that cannot be carried out as it is asked for.
///
/// # Errors
/// `invalid_argument`, with what is wrong with it.
pub fn check(request: &BuildRequest) -> Result<(), ApiError> {
    within("cpus", u64::from(request.cpus), u64::from(*CPUS.start()), u64::from(*CPUS.end()))?;
    within("memory", request.memory.0.into(), MEMORY.start().0.into(), MEMORY.end().0.into())?;
    within("disk", request.disk.0.into(), DISK.start().0.into(), DISK.end().0.into())?;
    within("script_seconds", request.script_seconds, *SCRIPT_SECONDS.start(), *SCRIPT_SECONDS.end())?;
    if !(1..=STEPS_MAX).contains(&request.steps.len()) {
        return Err(ApiError::invalid_argument(format!(
            "a build has 1 to {STEPS_MAX} steps, not {}",
            request.steps.len()
        ))
        .hint("each step has a script"));
    }
    let inline: usize = request.steps.iter().map(inline).sum();
    if inline > INLINE_MAX {
        return Err(ApiError::invalid_argument(format!(
            "{inline} bytes of scripts, environment and files are too many"
        ))
        .hint(format!("a request holds {INLINE_MAX}; larger files go through an object store (`files.object`)")));
    }
    request.steps.iter().enumerate().try_for_each(|(n, step)| {
        step_check(step).map_err(|mut error| {
            error.message = format!("step {}: {}", n + 1, error.message);
            error
        })
    })
}

fn within(what: &str, value: u64, least: u64, most: u64) -> Result<(), ApiError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ApiError::invalid_argument(format!("`{what}` cannot be {value}")).hint(format!("it is {least} to {most}")))
}

/// The bytes that a step has in the request.
fn inline(step: &BuildStep) -> usize {
    let files = match &step.files {
        Some(BuildFiles::Inline(text)) => text.len(),
        Some(BuildFiles::Object { object, sha256 }) => object.len() + sha256.len(),
        None => 0,
    };
    step.script.len() + step.env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() + files
}

fn step_check(step: &BuildStep) -> Result<(), ApiError> {
    let refuse = |message: String, hint: &str| Err(ApiError::invalid_argument(message).hint(hint));
    if step.script.is_empty() || step.script.len() > SCRIPT_MAX {
        return refuse(
            format!("a script has 1 to {SCRIPT_MAX} bytes, not {}", step.script.len()),
            "put more into files",
        );
    }
    if step.script.contains('\0') {
        return refuse("the script holds a NUL".to_owned(), "a script is text; programs go into files");
    }
    if step.title.chars().count() > TITLE_MAX || step.title.contains(char::is_control) {
        return refuse("the title cannot be shown".to_owned(), "it is one line of up to 100 characters");
    }
    let bytes: usize = step.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if step.env.len() > ENV_MAX || bytes > ENV_BYTES_MAX {
        let message = format!("{} environment variables of {bytes} bytes are too many", step.env.len());
        return refuse(message, "a step takes 256 of 65536 bytes");
    }
    for (name, value) in &step.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            let hint = "a name is not empty and has no `=`, and nothing holds a NUL";
            return refuse(format!("{name:?} cannot be an environment variable"), hint);
        }
    }
    match &step.files {
        Some(BuildFiles::Object { object, sha256 }) => object_check(object, sha256),
        Some(BuildFiles::Inline(_)) | None => files_digest(step).map(drop),
    }
}

fn object_check(object: &str, sha256: &str) -> Result<(), ApiError> {
    let token = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let named = object.split_once('/').is_some_and(|(bucket, name)| {
        !bucket.is_empty() && bucket.chars().all(token) && !name.is_empty() && !name.contains(char::is_control)
    });
    if !named || object.len() > OBJECT_MAX {
        let shown: String = object.chars().take(80).collect();
        return Err(ApiError::invalid_argument(format!("{shown:?} names no object"))
            .hint("write bucket/name, as `nats object ls` shows them"));
    }
    if sha256.len() != 64 || !sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(ApiError::invalid_argument("the digest of the files is no SHA-256")
            .hint("it is 64 digits of 0-9 and a-f, as `sha256sum` prints them"));
    }
    Ok(())
}

/// The archive that stands in a request.
///
/// # Errors
/// `invalid_argument`: it is no base64.
pub fn decoded(text: &str) -> Result<Vec<u8>, ApiError> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    BASE64_STANDARD.decode(text).map_err(|error| {
        ApiError::invalid_argument(format!("the files are no base64: {error}"))
            .hint("`files.inline` is a tar archive in base64, as `base64 -w0` writes it")
    })
}

/// SHA-256 of a step's files, in hexadecimal; empty where it has none.
fn files_digest(step: &BuildStep) -> Result<String, ApiError> {
    Ok(match &step.files {
        None => String::new(),
        Some(BuildFiles::Inline(text)) => hex::encode(Sha256::digest(decoded(text)?)),
        Some(BuildFiles::Object { sha256, .. }) => sha256.clone(),
    })
}

/// What the result of a step is found by: the SHA-256, in hexadecimal, of all that makes a difference to it.
///
/// # Errors
/// The files cannot be read, which [`check`] excludes.
pub fn key(base_digest: &str, step: &BuildStep) -> Result<String, ApiError> {
    let files = files_digest(step)?;
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        // With its length, so that no two lists of parts are the same bytes.
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(KEY_VERSION);
    part(base_digest.as_bytes());
    part(step.script.as_bytes());
    part(files.as_bytes());
    for (name, value) in &step.env {
        part(name.as_bytes());
        part(value.as_bytes());
    }
    Ok(hex::encode(hash.finalize()))
}

/// The command that runs a script which stands at `path`: as it asks itself, or by the shell, which then stops at the first failure and
/// at names that were never set.
pub fn command(script: &str, path: &str) -> Vec<String> {
    let words: &[&str] = if script.starts_with("#!") { &[path] } else { &["/bin/sh", "-eu", path] };
    words.iter().map(|&word| word.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use contract::ErrorCode;

    use super::*;

    fn request(steps: &str) -> BuildRequest {
        serde_json::from_str(&format!(r#"{{"name":"web","base":"debian","steps":{steps}}}"#)).unwrap()
    }

    fn step(text: &str) -> BuildStep {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_can_be_built_is_taken() {
        let object = format!(r#"{{"object":{{"object":"files/a b","sha256":"{}"}}}}"#, "a".repeat(64));
        for steps in [
            r#"[{"script":"true"}]"#,
            r#"[{"script":"true","env":{"A":"b"},"title":"setup.sh"},{"script":"x","files":{"inline":"YQ=="}}]"#,
            &format!(r#"[{{"script":"true","files":{object}}}]"#),
        ] {
            assert_eq!(check(&request(steps)), Ok(()), "{steps}");
        }
    }

    #[test]
    fn what_cannot_is_refused_with_a_hint() {
        let long = "x".repeat(SCRIPT_MAX + 1);
        let many = vec![r#"{"script":"true"}"#; STEPS_MAX + 1].join(",");
        for steps in [
            "[]",
            &format!("[{many}]"),
            r#"[{"script":""}]"#,
            r#"[{"script":"a\u0000b"}]"#,
            &format!(r#"[{{"script":"{long}"}}]"#),
            r#"[{"script":"true","title":"a\nb"}]"#,
            r#"[{"script":"true","env":{"A=B":"c"}}]"#,
            r#"[{"script":"true","env":{"":"c"}}]"#,
            r#"[{"script":"true","files":{"inline":"no base64!"}}]"#,
            r#"[{"script":"true","files":{"object":{"object":"a.b/c","sha256":"00"}}}]"#,
            r#"[{"script":"true","files":{"object":{"object":"a/c","sha256":"00"}}}]"#,
        ] {
            let error = check(&request(steps)).unwrap_err();
            assert_eq!((error.code, error.hint.is_some()), (ErrorCode::InvalidArgument, true), "{steps}");
        }
        let mut large = request(r#"[{"script":"true"}]"#);
        large.steps[0].files = Some(BuildFiles::Inline("A".repeat(INLINE_MAX + 4)));
        assert!(check(&large).unwrap_err().hint.unwrap().contains("object"));
        let mut strange = request(r#"[{"script":"true"}]"#);
        strange.cpus = 0;
        assert!(check(&strange).unwrap_err().message.contains("cpus"));
    }

    #[test]
    fn a_key_is_of_all_that_makes_a_difference_and_of_nothing_else() {
        let base = key("sha256:a", &step(r#"{"script":"true"}"#)).unwrap();
        assert_eq!(base.len(), 64);
        assert_eq!(base, key("sha256:a", &step(r#"{"script":"true","title":"setup.sh"}"#)).unwrap());
        let others = [
            key("sha256:b", &step(r#"{"script":"true"}"#)),
            key("sha256:a", &step(r#"{"script":"false"}"#)),
            key("sha256:a", &step(r#"{"script":"true","env":{"A":"B"}}"#)),
            key("sha256:a", &step(r#"{"script":"true","env":{"AB":""}}"#)),
            key("sha256:a", &step(r#"{"script":"true","files":{"inline":"YQ=="}}"#)),
            key("sha256:a", &step(r#"{"script":"true","files":{"inline":"Yg=="}}"#)),
        ];
        let mut all: Vec<_> = others.into_iter().map(Result::unwrap).chain([base]).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 7);
    }

    #[test]
    fn the_same_files_are_the_same_wherever_they_come_from() {
        let inline = step(r#"{"script":"true","files":{"inline":"YQ=="}}"#);
        let sha256 = hex::encode(Sha256::digest("a"));
        let object =
            step(&format!(r#"{{"script":"true","files":{{"object":{{"object":"b/n","sha256":"{sha256}"}}}}}}"#));
        assert_eq!(key("sha256:a", &inline).unwrap(), key("sha256:a", &object).unwrap());
    }

    #[test]
    fn a_script_is_run_as_it_asks() {
        assert_eq!(command("echo a", "/x"), ["/bin/sh", "-eu", "/x"]);
        assert_eq!(command("#!/usr/bin/python3\n", "/x"), ["/x"]);
    }
}
