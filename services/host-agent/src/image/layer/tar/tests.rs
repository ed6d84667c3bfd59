use std::{fs, io::Write, os::unix::ffi::OsStrExt, path::Path, process::Command};

use super::*;

/// An archive's entries, each with its contents (holes as zeros).
fn list(archive: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, Error> {
    // A small buffer, so that everything is met at its edges.
    let mut reader = Reader::new(io::BufReader::with_capacity(700, archive));
    let mut all = Vec::new();
    while let Some(member) = reader.next()? {
        let mut content = Vec::new();
        reader.content(|part| {
            match part {
                Part::Data(data) => content.extend_from_slice(data),
                Part::Hole(length) => content.resize(content.len() + usize::try_from(length).unwrap(), 0),
            }
            Ok::<_, Error>(())
        })?;
        all.push((member, content));
    }
    reader.drain()?;
    Ok(all)
}

fn gnu_tar(dir: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").arg("-C").arg(dir).args(arguments).args(["-cf", "-", "."]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A header of a regular file, to be spoilt.
fn header(name: &[u8], kind: u8, size: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[124..124 + size.len()].copy_from_slice(size);
    block[156] = kind;
    block[257..263].copy_from_slice(b"ustar\0");
    sum(&mut block);
    block
}

fn sum(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

#[test]
fn archives_of_gnu_tar_are_read_in_each_of_its_formats() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{0}/{0}/{1}", "d".repeat(120), "f".repeat(255));
    fs::create_dir_all(dir.path().join(&long).parent().unwrap()).unwrap();
    fs::write(dir.path().join(&long), "long").unwrap();
    let raw = std::ffi::OsStr::from_bytes(b"caf\xe9-\xff");
    fs::write(dir.path().join(raw), vec![7; 1500]).unwrap();
    std::os::unix::fs::symlink("x".repeat(300), dir.path().join("link")).unwrap();
    let sparse = fs::File::create(dir.path().join("sparse")).unwrap();
    for n in 0..40u64 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &[n as u8 + 1; 4096], n * 65536).unwrap();
    }
    sparse.set_len(40 * 65536).unwrap();
    let expected = fs::read(dir.path().join("sparse")).unwrap();
    for arguments in [
        &["--format=gnu", "--sparse"][..],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
        &["--format=pax"],
        &["--format=gnu", "--owner=5000000", "--mtime=@-5"],
    ] {
        let archive = gnu_tar(dir.path(), arguments);
        let found = list(&archive).unwrap();
        let get = |path: &[u8]| {
            let path = [b"./", path].concat();
            found.iter().find(|(member, _)| member.path == path).unwrap_or_else(|| panic!("{arguments:?}: {path:?}"))
        };
        assert_eq!(get(long.as_bytes()).1, b"long", "{arguments:?}");
        assert_eq!(get(raw.as_bytes()).1, vec![7; 1500], "{arguments:?}");
        assert_eq!(get(b"link").0.link, "x".repeat(300).as_bytes());
        assert!(get(b"sparse").1 == expected, "{arguments:?}");
        assert_eq!(archive.len() < expected.len() / 2, arguments.contains(&"--sparse"), "holes are holes");
        if arguments.contains(&"--mtime=@-5") {
            assert_eq!((get(b"link").0.uid, get(b"link").0.mtime), (5_000_000, (-5, 0)));
        }
    }
}

#[test]
fn what_is_no_archive_is_refused_and_never_read_for_one() {
    let good = header(b"a", b'0', b"00000001000");
    let truncated = &good[..300];
    let no_content = good.to_vec();
    let mut wrong_sum = good;
    wrong_sum[0] = b'b';
    let negative = header(b"a", b'0', &[0xff; 12]);
    let flood = header(b"a", b'x', b"77777777777");
    let unknown = header(b"a", b'Q', b"0");
    let nobody = {
        let mut block = header(b"a", b'5', b"0");
        block[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        sum(&mut block);
        block
    };
    let after_end = [&[0; BLOCK][..], &good].concat();
    let sparse_map = |map: &str| {
        let records = format!("GNU.sparse.size=100\nGNU.sparse.map={map}\n");
        let records: String = records.lines().map(|line| format!("{} {line}\n", line.len() + 4)).collect();
        let mut bytes = header(b"x", b'x', format!("{:011o}", records.len()).as_bytes()).to_vec();
        bytes.extend(records.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes.extend(header(b"a", b'0', b"00000000012"));
        bytes.extend([0; BLOCK]);
        bytes
    };
    assert_eq!(list(&sparse_map("5,10")).unwrap()[0].1.len(), 100);
    for (what, bytes, words) in [
        ("truncated header", truncated, "middle of an entry"),
        ("truncated file", &no_content, "middle of a file"),
        ("checksum", &wrong_sum, "checksum"),
        ("negative size", &negative, "negative"),
        ("an endless extended header", &flood, "more than"),
        ("unknown type", &unknown, "unknown type"),
        ("nobody", &nobody, "no user or group"),
        ("after the end", &after_end, "follow its end"),
        ("overlap", &sparse_map("50,5,40,5"), "overlap"),
        ("beyond", &sparse_map("95,10"), "beyond"),
        ("other data", &sparse_map("5,11"), "other data"),
        ("odd map", &sparse_map("5,10,7"), "no number"),
        ("overflow", &sparse_map("18446744073709551615,10"), "overlap"),
        ("text", &[b'x'; 2048], "no number"),
    ] {
        let error = list(bytes).expect_err(what);
        assert!(matches!(&error, Error::Malformed(why) if why.contains(words)), "{what}: {error}");
    }
}

#[test]
fn a_file_has_the_name_that_other_readers_see() {
    let named = |records: &[u8]| {
        let mut bytes = header(b"x", b'x', format!("{:011o}", records.len()).as_bytes()).to_vec();
        bytes.extend(records);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    };
    let file = header(b"h", b'0', b"0");
    let path = |bytes: &[u8]| list(bytes).unwrap()[0].0.path.clone();
    // The name of a sparse file, where there is none.
    let lie = named(b"10 path=a\n21 GNU.sparse.name=b\n");
    assert_eq!(path(&[&lie[..], &file].concat()), b"a");
    // Of two headers before one entry the last one counts.
    let two = [named(b"10 path=a\n"), named(b"8 uid=5\n"), file.to_vec()].concat();
    assert_eq!(path(&two), b"h");
}

#[test]
fn what_stands_before_one_entry_is_bounded_however_many_headers_say_it() {
    let attributes = |first: usize, count: usize, value: &[u8]| {
        let mut records = Vec::new();
        for n in first..first + count {
            let record = [format!(" SCHILY.xattr.user.{n:06}=").as_bytes(), value, b"\n"].concat();
            let digits = (record.len() + 3).to_string().len();
            records.extend([(record.len() + digits).to_string().as_bytes(), &record].concat());
        }
        let mut bytes = header(b"x", b'x', format!("{:011o}", records.len()).as_bytes()).to_vec();
        bytes.extend(&records);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    };
    let refused = |bytes: &[u8], words: &str| {
        let began = std::time::Instant::now();
        let error = list(&[bytes, &header(b"a", b'0', b"0")].concat()).expect_err(words);
        assert!(matches!(&error, Error::Malformed(why) if why.contains(words)), "{error}");
        assert!(began.elapsed() < std::time::Duration::from_secs(5), "{words}: {:?}", began.elapsed());
    };
    let taken = [attributes(0, 200, b"v"), header(b"a", b'0', b"0").to_vec()].concat();
    assert_eq!(list(&taken).unwrap()[0].0.xattrs.len(), 200);
    // Much in each of a few headers, little in many, and headers that say nothing.
    refused(&attributes(0, 1, &[7; 300_000]).repeat(4), "more than 1048576 bytes");
    refused(&(0..40).flat_map(|n| attributes(n * 30_000, 30_000, b"")).collect::<Vec<u8>>(), "extended attributes");
    refused(&header(b"x", b'x', b"0").repeat(3000), "more than 1048576 bytes");
    let name = [&header(b"L", b'L', b"00001000000")[..], &[b'n'; 256 << 10]].concat();
    refused(&name.repeat(5), "more than 1048576 bytes");
}

#[test]
fn every_truncation_of_an_archive_ends_in_an_error_or_before_an_entry() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = fs::File::create(dir.path().join("f".repeat(200))).unwrap();
    file.write_all(&[1; 3000]).unwrap();
    let archive = gnu_tar(dir.path(), &["--format=pax"]);
    let whole = list(&archive).unwrap().len();
    let last = archive.iter().rposition(|byte| *byte != 0).unwrap();
    let archive = &archive[..last.next_multiple_of(BLOCK) + 2 * BLOCK];
    for end in 0..archive.len() {
        match list(&archive[..end]) {
            Ok(found) => assert!(end % BLOCK == 0 && found.len() <= whole, "{end}"),
            Err(Error::Malformed(_)) => {}
            Err(Error::Io(error)) => panic!("{end}: {error}"),
        }
    }
}
