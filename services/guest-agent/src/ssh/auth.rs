//! Who may log in: the operator's keys, as root or as any user of the image with a shell.

use russh::keys::PublicKey;

use crate::process::user::{self, Account};

/// The keys in OpenSSH's one-line form, and what is wrong with those that cannot be read.
pub fn parse_keys(lines: &[String]) -> (Vec<PublicKey>, Vec<String>) {
    let (mut keys, mut problems) = (Vec::new(), Vec::new());
    for (number, line) in lines.iter().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match PublicKey::from_openssh(line) {
            Ok(key) => keys.push(key),
            Err(error) => problems.push(format!("ssh key {} cannot be used: {error}", number + 1)),
        }
    }
    (keys, problems)
}

/// Whether `offered` is one of `keys`; comments do not count.
pub fn is_known(keys: &[PublicKey], offered: &PublicKey) -> bool {
    keys.iter().any(|key| key.key_data() == offered.key_data())
}

/// The user to log in as, if that is allowed.
pub fn account(name: &str) -> Option<Account> {
    // A login name is a name: `root:group` and an empty one mean something only to exec.
    if name.is_empty() || name.contains(':') {
        return None;
    }
    user::find(name).ok().filter(|account| account.name == name && account.can_log_in())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIC8RizNnPCJAKROgg9MvXQFST0/Mio/VljfDDTfXvbZr";

    #[test]
    fn comments_do_not_count_and_garbage_is_left_out() {
        let (keys, problems) =
            parse_keys(&[format!("{KEY} me@here"), "ssh-ed25519 nonsense".into(), String::new(), "# no key".into()]);
        assert_eq!((keys.len(), problems.len()), (1, 1));
        assert!(is_known(&keys, &PublicKey::from_openssh(KEY).unwrap()));
        assert!(!is_known(&[], &keys[0]));
    }

    #[test]
    fn only_plain_names_log_in() {
        assert!(account("root").is_some());
        assert!(account("root:root").is_none());
        assert!(account("").is_none());
        assert!(account("no-such-user-here").is_none());
    }
}
