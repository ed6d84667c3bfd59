//! `warren ssh-config`: lets plain `ssh web.warren` and all that stands on ssh (scp, rsync, VS Code, Ansible) into VMs: their
//! bytes go through `warren proxy`, and their host keys are asked of the lab, so that none is ever unknown.

use contract::{
    ApiError,
    vm::{self, VmRef},
};

use super::ssh::{shell_word, without_domain};
use crate::{
    args::{Global, SshConfigArgs},
    client::Client,
    failure::{Failure, Outcome},
    output,
};

/// Prints the configuration.
///
/// # Errors
/// `invalid_argument` where a value could mean something else to ssh.
pub async fn run(global: &Global, args: &SshConfigArgs) -> Result<Outcome, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| ApiError::internal(format!("the path of warren itself is not known: {error}")))?;
    output::text(&text(&shell_word(&own)?, &lab(global)?, args)?)?;
    Ok(Outcome::Done)
}

/// The arguments that lead to the lab that was named; what was not named is found again when ssh runs.
fn lab(global: &Global) -> Result<String, ApiError> {
    let mut arguments = String::new();
    // What the environment says it says where ssh runs, too.
    let named = global.nats.as_ref().filter(|url| std::env::var("WARREN_NATS_URL").as_ref() != Ok(*url));
    if let Some(url) = named {
        if url.contains('@') {
            return Err(ApiError::invalid_argument(
                "a URL with a password would be everybody's to read in the configuration",
            )
            .hint("give --nats-credentials, or set WARREN_NATS_URL where ssh runs"));
        }
        arguments.push_str(&format!(" --nats {}", shell_word(url.as_ref())?));
    }
    if let Some(path) = &global.nats_credentials {
        let path = std::path::absolute(path)
            .map_err(|error| ApiError::invalid_argument(format!("{}: {error}", path.display())))?;
        arguments.push_str(&format!(" --nats-credentials {}", shell_word(&path)?));
    }
    Ok(arguments)
}

fn text(own: &str, lab: &str, args: &SshConfigArgs) -> Result<String, ApiError> {
    let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    for (what, value) in [("user", &args.user), ("domain", &args.domain)] {
        if !plain(value) {
            return Err(ApiError::invalid_argument(format!("{value:?} cannot be a {what} in a configuration of ssh")));
        }
    }
    let (user, domain) = (&args.user, &args.domain);
    Ok(format!(
        "# Made by `warren ssh-config`. Put it into ~/.ssh/warren_config, and at the top of ~/.ssh/config:\n\
         #   Include warren_config\n\
         Host *.{domain}\n\
         \x20   User {user}\n\
         \x20   ProxyCommand {own}{lab} proxy %n\n\
         \x20   KnownHostsCommand {own}{lab} known-host %H\n\
         \x20   UserKnownHostsFile /dev/null\n\
         \x20   GlobalKnownHostsFile /dev/null\n\
         \x20   StrictHostKeyChecking yes\n\
         \x20   UpdateHostKeys no\n"
    ))
}

/// Prints the line of known_hosts(5) for a VM; nothing for a name that is none, which ssh then does not know.
///
/// # Errors
/// The lab does not answer.
pub async fn known_host(global: &Global, name: &str) -> Result<Outcome, Failure> {
    let request = VmRef { vm: without_domain(name).to_owned() };
    let vm = Client::connect(global).await?.ask::<vm::Get>(&request).await?;
    if let Some(key) = vm.ssh_host_key {
        output::text(&format!("{} {}\n", output::clean(name), output::clean(&key)))?;
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_holds_only_what_it_should() {
        let args = |user: &str| SshConfigArgs { user: user.to_owned(), domain: "warren".to_owned() };
        let text_of = text("'/usr/bin/warren'", " --nats 'nats://127.0.0.1:4222'", &args("root")).unwrap();
        assert!(text_of.contains("    ProxyCommand '/usr/bin/warren' --nats 'nats://127.0.0.1:4222' proxy %n\n"));
        assert!(text("w", "", &args("root\n    ProxyCommand evil")).is_err());
    }
}
