//! Senders that do not keep to the protocol.

use std::{
    fs,
    io::{self, Write},
};

use contract::ErrorCode;
use tree::{GuestError, Transfer, receive};

use crate::support::Lab;

fn message(tag: u8, payload: &[u8]) -> Vec<u8> {
    [&[tag][..], &(payload.len() as u32).to_be_bytes(), payload].concat()
}

fn hello(rows: &[u8], entries: u64, bytes: u64) -> Vec<u8> {
    use sha1::{Digest, Sha1};
    let digest = Sha1::digest(rows);
    message(1, &[&[1][..], &digest, &entries.to_be_bytes(), &bytes.to_be_bytes()].concat())
}

fn pieces(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    [message(tag, &encoder.finish().unwrap()), message(tag, &[])].concat()
}

fn row(path: &[u8], kind: &[u8]) -> Vec<u8> {
    [&0_u16.to_le_bytes()[..], &(path.len() as u16).to_le_bytes(), path, &[0; 12], kind].concat()
}

fn file(path: &[u8], size: u64) -> Vec<u8> {
    row(path, &[&[1, 0xa4, 1][..], &size.to_le_bytes(), &[9; 20]].concat())
}

fn directory(path: &[u8]) -> Vec<u8> {
    row(path, &[0, 0xed, 1])
}

fn refused(lab: &Lab, wire: &[u8]) -> GuestError {
    let error = receive(&lab.order(), &lab.state, None, wire, io::sink(), &Transfer::default()).unwrap_err();
    assert_eq!(fs::read_dir(lab.workspace().parent().unwrap()).unwrap().count(), 0, "{error:?}");
    assert_eq!(fs::read_dir(&lab.state.0).map_or(0, Iterator::count), 0);
    error
}

#[test]
fn lists_that_are_no_tree_are_refused_before_anything_is_written() {
    let lab = Lab::new();
    for (entries, rows) in [
        (1, file(b"../x", 1)),
        (1, file(b"/etc/x", 1)),
        (2, [directory(b"a"), file(b"a/../x", 1)].concat()),
        (2, [file(b"a", 1), file(b"a", 1)].concat()),
        (2, [file(b"a", 1), file(b"a/b", 1)].concat()),
        (2, [row(b"a", b"\x02\x04\0/etc"), file(b"a/b", 1)].concat()),
        (2, [file(b"b", 1), file(b"a", 1)].concat()),
        (1, file(b"no/parent", 1)),
        (1, row(b"a", &[0, 0xff, 0xff])),
        (1, row(b"a", &[9])),
        (1, row(b"a", b"\x02\0\0")),
    ] {
        let wire = [hello(&rows, entries, entries), pieces(2, &rows)].concat();
        let error = refused(&lab, &wire);
        assert_eq!(error.to_api().code, ErrorCode::InvalidArgument, "{error:?}");
    }
    let rows = file(b"a", 1);
    for wire in [
        hello(&rows, u64::MAX, 0),
        [hello(b"other", 1, 1), pieces(2, &rows)].concat(),
        [hello(&rows, 1, 2), pieces(2, &rows)].concat(),
        [hello(&rows, 1, 1), message(3, b"out of turn")].concat(),
        [hello(&rows, 1, 1), message(2, b"this is no frame of zstd, it is a text")].concat(),
        message(1, &[2; 37]),
        message(99, b""),
        vec![1, 0xff, 0xff, 0xff, 0xff],
        message(4, b""),
    ] {
        assert_eq!(refused(&lab, &wire).to_api().code, ErrorCode::InvalidArgument, "{wire:?}");
    }
    assert!(matches!(refused(&lab, &message(5, b"never mind")), GuestError::Client(why) if why == "never mind"));
}

#[test]
fn sizes_beyond_the_disk_and_contents_that_are_not_as_promised_leave_nothing() {
    let lab = Lab::new();
    let rows = file(b"huge", 1 << 60);
    let wire = [hello(&rows, 1, 1 << 60), pieces(2, &rows)].concat();
    assert_eq!(refused(&lab, &wire).to_api().code, ErrorCode::ResourceExhausted);
    let rows = file(b"a", 5);
    let begin = [hello(&rows, 1, 5), pieces(2, &rows)].concat();
    for content in [&b"1234"[..], b"123456", b""] {
        let wire = [&begin[..], &pieces(3, content), &message(4, b"")].concat();
        assert!(refused(&lab, &wire).to_api().code != ErrorCode::Internal, "{content:?}");
    }
    let mut damaged = [&begin[..], &pieces(3, b"12345"), &message(4, b"")].concat();
    let end = damaged.len();
    // The checksum of the content.
    damaged[end - 12] ^= 1;
    assert_eq!(refused(&lab, &damaged).to_api().code, ErrorCode::InvalidArgument);
    let wire = [&begin[..], &pieces(3, b"12345"), &message(5, b"no more")].concat();
    assert!(matches!(refused(&lab, &wire), GuestError::Client(_)));
    let wire = [&begin[..], &pieces(3, b"12345"), &message(4, b"")].concat();
    receive(&lab.order(), &lab.state, None, &wire[..], io::sink(), &Transfer::default()).unwrap();
    assert_eq!(fs::read(lab.workspace().join("a")).unwrap(), b"12345");
}

#[test]
fn a_transfer_that_is_aborted_leaves_nothing() {
    let lab = Lab::new();
    let watch = Transfer::default();
    watch.abort();
    let rows = file(b"a", 5);
    let wire = [hello(&rows, 1, 5), pieces(2, &rows), pieces(3, b"12345"), message(4, b"")].concat();
    let error = receive(&lab.order(), &lab.state, None, &wire[..], io::sink(), &watch).unwrap_err();
    assert_eq!(error.to_api().code, ErrorCode::Cancelled);
    assert!(!lab.workspace().exists());
}
