//! The **trees** that are measured: git repositories of words as programs have them, the same in each run.

use std::{fs, io::Write, path::Path, process::Command};

use anyhow::ensure;

/// What a tree is like.
pub struct Shape {
    /// How it is called.
    pub name: &'static str,
    files: u32,
    /// Bytes of each file.
    size: usize,
    /// Commits after the first.
    commits: u32,
}

/// All of them: 5 MB, 100 MB, 50 000 small files, and 10 MB with a past.
pub const SHAPES: [Shape; 4] = [
    Shape { name: "small", files: 500, size: 10_000, commits: 0 },
    Shape { name: "large", files: 2_000, size: 50_000, commits: 0 },
    Shape { name: "many", files: 50_000, size: 400, commits: 0 },
    Shape { name: "past", files: 500, size: 20_000, commits: 400 },
];
/// Files that a later commit changes a line of.
const CHANGED: u32 = 20;

/// Makes one.
pub fn make(shape: &Shape, dir: &Path) -> anyhow::Result<()> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for number in 0..shape.files {
        let place = dir.join(format!("module{}/part{}", number / 1000, number % 1000 / 50));
        if number.is_multiple_of(50) {
            fs::create_dir_all(&place)?;
        }
        let mut text = Vec::with_capacity(shape.size + 16);
        while text.len() < shape.size {
            // Half of the words are common, half of the rest hold digits: text that compresses as programs do.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            match random % 4 {
                0 | 1 => write!(text, "word{} ", random >> 32 & 0x3f)?,
                2 => write!(text, "name_{:x} ", random >> 40 & 0xffff)?,
                _ => writeln!(text, "{:x};", random >> 24)?,
            }
        }
        fs::write(place.join(format!("file{number}.rs")), &text[..shape.size])?;
    }
    git(dir, &["init", "-q", "-b", "main"])?;
    commit(dir)?;
    for number in 0..shape.commits {
        for file in (0..CHANGED).map(|file| (number * 37 + file * 11) % shape.files) {
            let path = dir.join(format!("module{}/part{}/file{file}.rs", file / 1000, file % 1000 / 50));
            writeln!(fs::OpenOptions::new().append(true).open(path)?, "changed_in_{number:x}_{file};")?;
        }
        commit(dir)?;
    }
    git(dir, &["repack", "-adq"])
}

fn commit(dir: &Path) -> anyhow::Result<()> {
    git(dir, &["add", "-A"])?;
    git(dir, &["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-q", "-m", "one"])
}

fn git(dir: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let config = [("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1")];
    let status = Command::new("git").arg("-C").arg(dir).args(arguments).envs(config).status()?;
    ensure!(status.success(), "git {arguments:?} failed: {status}");
    Ok(())
}
