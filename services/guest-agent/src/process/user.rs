//! Users of the image, read from its `/etc/passwd` and `/etc/group` by ourselves: a static binary cannot load the
//! image's name service modules.

use std::{fs::File, io::Read};

/// The most bytes of either file that are read.
const FILE_MAX: u64 = 4 * 1024 * 1024;
/// The most supplementary groups, as in Linux.
const GROUPS_MAX: usize = 65536;
/// Shells that say that nobody logs in here.
const NO_SHELLS: [&str; 3] = ["nologin", "false", "sync"];

/// A user to run something as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Login name; the number where `/etc/passwd` does not know it.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, the primary one included.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// Why there is no such user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Not in `/etc/passwd`.
    #[error("the image has no user {0:?} in /etc/passwd")]
    User(String),
    /// Not in `/etc/group`.
    #[error("the image has no group {0:?} in /etc/group")]
    Group(String),
}

impl Account {
    /// Whether the user may log in over ssh.
    pub fn can_log_in(&self) -> bool {
        let shell = self.shell.rsplit('/').next().unwrap_or_default();
        !NO_SHELLS.contains(&shell)
    }
}

/// Finds a user of the image: a name or `uid`, with `:group` or `:gid` behind it where another group is wanted; empty means root.
///
/// # Errors
/// The image has no such user or group.
pub fn find(user: &str) -> Result<Account, UserError> {
    parse(user, &read("/etc/passwd"), &read("/etc/group"))
}

fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    // An image without these files has no users but root and numbers.
    File::open(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut bytes)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn parse(user: &str, passwd: &str, group: &str) -> Result<Account, UserError> {
    let (wanted, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let wanted = if wanted.is_empty() { "root" } else { wanted };
    let number = id(wanted);
    let known = passwd.lines().filter_map(entry).find(|account| account.name == wanted);
    let known = known.or_else(|| passwd.lines().filter_map(entry).find(|account| Some(account.uid) == number));
    let mut account = match (known, number) {
        (Some(account), _) => account,
        (None, Some(uid)) => nameless(uid),
        (None, None) if wanted == "root" => nameless(0),
        (None, None) => return Err(UserError::User(wanted.to_owned())),
    };
    match wanted_group {
        Some(name) => {
            account.gid = group_id(name, group).ok_or_else(|| UserError::Group(name.to_owned()))?;
            account.groups = vec![account.gid];
        }
        None => account.groups = memberships(&account, group),
    }
    Ok(account)
}

/// A decimal id; -1 means "unchanged" to the kernel, so it is none.
fn id(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten().filter(|id| *id != u32::MAX)
}

fn nameless(uid: u32) -> Account {
    let (name, home) = if uid == 0 { ("root".into(), "/root".into()) } else { (uid.to_string(), "/".into()) };
    Account { name, uid, gid: 0, groups: Vec::new(), home, shell: "/bin/sh".into() }
}

/// One line of passwd: name:password:uid:gid:comment:home:shell.
fn entry(line: &str) -> Option<Account> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
    if name.is_empty() || line.contains('\0') {
        return None;
    }
    Some(Account {
        name: name.to_owned(),
        uid: id(uid)?,
        gid: id(gid)?,
        groups: Vec::new(),
        home: if home.starts_with('/') { home } else { "/" }.to_owned(),
        shell: if shell.starts_with('/') { shell } else { "/bin/sh" }.to_owned(),
    })
}

/// One line of group: name:password:gid:members.
fn group_entry(line: &str) -> Option<(&str, u32, &str)> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, gid, members] = fields[..] else { return None };
    Some((name, id(gid)?, members))
}

fn group_id(name: &str, group: &str) -> Option<u32> {
    group.lines().filter_map(group_entry).find(|(known, ..)| *known == name).map(|(_, gid, _)| gid).or_else(|| id(name))
}

fn memberships(account: &Account, group: &str) -> Vec<u32> {
    let mut groups = vec![account.gid];
    for (_, gid, members) in group.lines().filter_map(group_entry) {
        if members.split(',').any(|member| member == account.name)
            && !groups.contains(&gid)
            && groups.len() < GROUPS_MAX
        {
            groups.push(gid);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        bad line\n:x:5:5::/:/bin/sh\nhuge:x:4294967295:0::/:/bin/sh\n\
        git:x:1000:1001:Git:/home/git:/usr/sbin/nologin\ndev:x:1001:1001::relative:\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:dev,git\ndocker:x:998:git\nwrong\n";

    #[test]
    fn names_numbers_and_nothing_are_found() {
        assert_eq!(parse("", PASSWD, GROUP).unwrap().shell, "/bin/bash");
        let git = parse("git", PASSWD, GROUP).unwrap();
        assert_eq!((git.uid, git.gid, git.groups.as_slice()), (1000, 1001, &[1001, 27, 998][..]));
        assert!(!git.can_log_in());
        assert_eq!(parse("1000", PASSWD, GROUP).unwrap(), git);
        let dev = parse("dev", PASSWD, GROUP).unwrap();
        assert_eq!((dev.home.as_str(), dev.shell.as_str(), dev.can_log_in()), ("/", "/bin/sh", true));
    }

    #[test]
    fn a_group_can_be_named_with_the_user() {
        assert_eq!(parse("1000:27", PASSWD, GROUP).unwrap().groups, [27]);
        assert_eq!(parse("git:docker", PASSWD, GROUP).unwrap().gid, 998);
        assert_eq!(parse("git:nope", PASSWD, GROUP), Err(UserError::Group("nope".into())));
    }

    #[test]
    fn unknown_names_are_refused_and_unknown_numbers_taken() {
        assert_eq!(parse("eve", PASSWD, GROUP), Err(UserError::User("eve".into())));
        assert_eq!(parse("huge", PASSWD, GROUP), Err(UserError::User("huge".into())));
        assert_eq!(parse("4294967295", PASSWD, GROUP), Err(UserError::User("4294967295".into())));
        let number = parse("4242", PASSWD, GROUP).unwrap();
        assert_eq!((number.uid, number.gid, number.home.as_str()), (4242, 0, "/"));
        assert_eq!(parse("root", "", "").unwrap().home, "/root");
    }
}
