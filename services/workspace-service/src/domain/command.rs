//! A **command** as it may be sent to a guest. What depends on the guest (its users, its programs) the guest checks.

use contract::{ApiError, guest, job::TIMEOUT_MAX_MS, workspace::Command};

/// Checks what needs no guest.
///
/// # Errors
/// `invalid_argument`: nothing to run, text no process can be given, or more than the channel to the guest takes.
pub fn check(command: &Command) -> Result<(), ApiError> {
    let program = command.argv.first().map(String::as_str).unwrap_or_default();
    if program.is_empty() {
        return Err(ApiError::invalid_argument("`argv` names no program").hint("its first element is what to run"));
    }
    let texts = command.argv.iter().chain(&command.env).chain(&command.cwd).chain(&command.user);
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err(ApiError::invalid_argument("the command holds a NUL character, which no process can be given"));
    }
    if let Some(wrong) = command.env.iter().find(|pair| pair.find('=').is_none_or(|at| at == 0)) {
        let shown: String = wrong.chars().take(80).collect();
        return Err(ApiError::invalid_argument(format!("{shown:?} in `env` is not NAME=value")));
    }
    if let Some(limit) = command.timeout_ms.filter(|limit| !(1..=TIMEOUT_MAX_MS).contains(limit)) {
        return Err(ApiError::invalid_argument(format!(
            "the command's `timeout_ms` {limit} is not within 1 to {TIMEOUT_MAX_MS}"
        )));
    }
    if command.open_stdin && !command.detach {
        return Err(ApiError::invalid_argument("`open_stdin` is for a command that is detached"));
    }
    let request = serde_json::to_vec(&guest::Request::Exec(command.clone()));
    let length = request.map_err(|error| ApiError::internal(error.to_string()))?.len();
    if length > guest::MESSAGE_MAX {
        return Err(ApiError::invalid_argument(format!(
            "the command has {length} bytes, a guest takes {} at the most",
            guest::MESSAGE_MAX
        ))
        .hint("send long data as standard input"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::ErrorCode;

    fn command(argv: &[&str], env: &[&str]) -> Command {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Command { argv: owned(argv), env: owned(env), ..Command::default() }
    }

    #[test]
    fn an_ordinary_command_passes() {
        assert_eq!(check(&command(&["sh", "-c", "", "日本"], &["A=", "B==", "C=d e"])), Ok(()));
    }

    #[test]
    fn what_no_guest_could_run_is_refused_here() {
        let long = "x".repeat(guest::MESSAGE_MAX);
        for (argv, env) in [
            (&[][..], &[][..]),
            (&[""], &[]),
            (&["sh", "a\0b"], &[]),
            (&["sh"], &["A=\0"]),
            (&["sh"], &["A"]),
            (&["sh"], &["=b"]),
            (&["sh"], &[""]),
            (&["sh", &long], &[]),
        ] {
            assert_eq!(check(&command(argv, env)).unwrap_err().code, ErrorCode::InvalidArgument, "{argv:?} {env:?}");
        }
        let elsewhere = Command { cwd: Some("/\0".into()), ..command(&["sh"], &[]) };
        assert!(check(&elsewhere).is_err());
    }
}
