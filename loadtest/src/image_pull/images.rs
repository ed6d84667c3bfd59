//! The **images** that are pulled: a tree in one layer, the same in several, and a large one.

use std::{fs, io, path::Path};

use anyhow::Context;
use testkit::image::{Layer, Layout, Packing};

/// Bytes of each file of the large image.
const LARGE_FILE: usize = 4 << 20;
/// Of how many layers the large image is made, beside the tree's.
const LARGE_LAYERS: u32 = 4;

/// A tree in so many layers of about the same size, in the archive's own order.
///
/// # Errors
/// The archive cannot be read.
pub fn layered(archive: &Path, layers: u16) -> anyhow::Result<Layout> {
    if layers == 1 {
        return Ok(Layout::new(vec![Layer::from_tar(archive)?]));
    }
    let share = fs::metadata(archive)?.len() / u64::from(layers);
    let (mut parts, mut part, mut length) = (Vec::new(), tar::Builder::new(Vec::new()), 0);
    for entry in tar::Archive::new(fs::File::open(archive)?).entries()? {
        let mut entry = entry?;
        append(&mut part, &mut entry).with_context(|| format!("{} cannot be divided", archive.display()))?;
        length += entry.size() + 512;
        if length >= share && parts.len() + 1 < usize::from(layers) {
            parts.push(std::mem::replace(&mut part, tar::Builder::new(Vec::new())));
            length = 0;
        }
    }
    parts.push(part);
    Ok(Layout::new(parts.into_iter().map(|tar| Layer::from_builder(tar, Packing::Gzip)).collect()))
}

/// An entry as it is, with its long names and attributes.
fn append(part: &mut tar::Builder<Vec<u8>>, entry: &mut tar::Entry<'_, fs::File>) -> io::Result<()> {
    let extensions: Vec<(String, Vec<u8>)> = match entry.pax_extensions()? {
        Some(all) => all
            .filter_map(Result::ok)
            .map(|extension| (extension.key().unwrap_or_default().to_owned(), extension.value_bytes().to_vec()))
            .filter(|(key, _)| key.starts_with("SCHILY.xattr."))
            .collect(),
        None => Vec::new(),
    };
    part.append_pax_extensions(extensions.iter().map(|(key, value)| (key.as_str(), &value[..])))?;
    let (path, link) = (entry.path()?.into_owned(), entry.link_name()?.map(|name| name.into_owned()));
    let mut header = entry.header().clone();
    match link {
        Some(target) => part.append_link(&mut header, path, target),
        None => part.append_data(&mut header, path, entry),
    }
}

/// The tree, and files of so many MiB in all above it that pack to about half.
///
/// # Errors
/// The archive cannot be read.
pub fn large(archive: &Path, mib: u32) -> anyhow::Result<Layout> {
    let mut layers = vec![Layer::from_tar(archive)?];
    let files = (u64::from(mib) << 20) / LARGE_FILE as u64;
    let (mut content, mut state) = (vec![0; LARGE_FILE], 0x9e37_79b9_7f4a_7c15);
    for number in 0..LARGE_LAYERS {
        let mut layer = Layer::new(Packing::Gzip).dir(&format!("srv/{number}"), 0o755);
        for file in 0..files.div_ceil(u64::from(LARGE_LAYERS)) {
            fill(&mut content, &mut state);
            layer = layer.file(&format!("srv/{number}/{file}"), 0o644, &content);
        }
        layers.push(layer);
    }
    Ok(Layout::new(layers))
}

/// Bytes of a xorshift generator with four bits of each kept, which pack to about half as programs do.
fn fill(content: &mut [u8], state: &mut u64) {
    for chunk in content.chunks_mut(8) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        let bytes = (*state & 0x0f0f_0f0f_0f0f_0f0f).to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
}
