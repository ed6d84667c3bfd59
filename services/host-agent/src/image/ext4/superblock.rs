//! The superblock, its copies, and the inode that keeps room for more group descriptors.

use mkext4::{
    csum,
    spec::{Inode, JOURNAL_INO, Superblock, compat, incompat, ro_compat},
};

use super::{
    BLOCK, Error, LOST_AND_FOUND, Writer,
    inode::FILE,
    space::{GROUP, TABLE, has_superblock},
};

/// The inode of the blocks kept for descriptors (`resize_inode`).
const RESIZE: u32 = 7;
/// Its double indirect block's place among its 15.
const DOUBLE: usize = 13;
/// Numbers of blocks in a block.
const IN_BLOCK: u64 = BLOCK as u64 / 4;

/// What the superblock says.
pub(super) struct Summary {
    pub blocks: u64,
    pub free_blocks: u64,
    pub inodes: u32,
    pub free_inodes: u32,
    pub inodes_per_group: u32,
    pub journal: Inode,
}

/// The groups, and the blocks of their descriptors.
pub(super) fn groups(blocks: u64) -> (u64, u64) {
    let groups = blocks.div_ceil(GROUP);
    (groups, (groups * 32).div_ceil(BLOCK as u64))
}

impl Writer {
    /// Describes the inode for growing: its blocks are those behind the descriptors of each superblock, those of the
    /// first each a list of the copies.
    pub(super) fn growing(&mut self, blocks: u64, double: u64) -> Result<(), Error> {
        let (groups, descriptors) = groups(blocks);
        let backups: Vec<u64> = (1..groups).filter(|group| has_superblock(*group)).collect();
        let mut list = [0; BLOCK];
        for block in 1 + descriptors..=TABLE {
            let mut copies = [0; BLOCK];
            for (place, group) in copies.chunks_mut(4).zip(&backups) {
                place.copy_from_slice(&((group * GROUP + block) as u32).to_le_bytes());
            }
            self.image.put(block, &copies)?;
            // In its place as the descriptors' block of that number.
            let at = (block - 1) as usize * 4;
            list[at..at + 4].copy_from_slice(&(block as u32).to_le_bytes());
        }
        self.image.put(double, &list)?;
        let kept = TABLE - descriptors;
        let mut inode = Inode {
            mode: FILE | 0o600,
            links_count: 1,
            size: (IN_BLOCK * IN_BLOCK + IN_BLOCK + 12) * BLOCK as u64,
            blocks: (1 + kept * (1 + backups.len() as u64)) * BLOCK as u64 / 512,
            extra_isize: 32,
            ..self.dated()
        };
        inode.block[DOUBLE * 4..DOUBLE * 4 + 4].copy_from_slice(&(double as u32).to_le_bytes());
        self.store(RESIZE, &inode)
    }

    /// An inode of now.
    pub(super) fn dated(&self) -> Inode {
        let (now, extra) = Inode::encode_timestamp(self.now, 0);
        Inode {
            atime: now,
            ctime: now,
            mtime: now,
            crtime: now,
            atime_extra: extra,
            ctime_extra: extra,
            mtime_extra: extra,
            crtime_extra: extra,
            ..Inode::default()
        }
    }

    /// Writes descriptors and superblocks: copies first, the one that makes it a filesystem last.
    pub(super) fn superblocks(&mut self, summary: &Summary, descriptors: &[u8]) -> Result<(), Error> {
        let superblock = self.superblock(summary);
        let (groups, _) = groups(summary.blocks);
        for group in (0..groups).rev().filter(|group| has_superblock(*group)) {
            let start = group * GROUP;
            for (n, block) in descriptors.chunks(BLOCK).enumerate() {
                self.image.put(start + 1 + n as u64, block)?;
            }
            let mut bytes = [0; BLOCK];
            // The first one leaves room for what starts a machine.
            let at = if group == 0 { 1024 } else { 0 };
            let into = &mut bytes[at..at + Superblock::LEN];
            let mut copy = Superblock { block_group_nr: group as u16, ..superblock.clone() };
            copy.encode(into);
            copy.checksum = csum::superblock(into);
            copy.encode(into);
            self.image.put(start, &bytes)?;
        }
        Ok(())
    }

    fn superblock(&self, summary: &Summary) -> Superblock {
        let (_, descriptors) = groups(summary.blocks);
        // A copy of the journal's map, should its inode be lost.
        let mut journal = [0; 17];
        for (word, bytes) in journal.iter_mut().zip(summary.journal.block.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        journal[15] = (summary.journal.size >> 32) as u32;
        journal[16] = summary.journal.size as u32;
        let now = self.now as u32;
        Superblock {
            inodes_count: summary.inodes,
            blocks_count: summary.blocks,
            r_blocks_count: 0,
            free_blocks_count: summary.free_blocks,
            free_inodes_count: summary.free_inodes,
            first_data_block: 0,
            log_block_size: 2,
            log_cluster_size: 2,
            blocks_per_group: GROUP as u32,
            clusters_per_group: GROUP as u32,
            inodes_per_group: summary.inodes_per_group,
            mtime: 0,
            wtime: now,
            mnt_count: 0,
            max_mnt_count: u16::MAX,
            // Clean; errors are passed over; Linux; of variable inode sizes.
            state: 1,
            errors: 1,
            minor_rev_level: 0,
            lastcheck: now,
            checkinterval: 0,
            creator_os: 0,
            rev_level: 1,
            def_resuid: 0,
            def_resgid: 0,
            first_ino: LOST_AND_FOUND,
            inode_size: mkext4::spec::INODE_SIZE as u16,
            block_group_nr: 0,
            feature_compat: compat::HAS_JOURNAL | compat::EXT_ATTR | RESIZE_INODE | compat::DIR_INDEX,
            feature_incompat: incompat::FILETYPE | incompat::EXTENTS | incompat::FLEX_BG,
            feature_ro_compat: ro_compat::WRITER,
            uuid: self.uuid,
            volume_name: [0; 16],
            last_mounted: [0; 64],
            reserved_gdt_blocks: (TABLE - descriptors) as u16,
            journal_uuid: [0; 16],
            journal_inum: JOURNAL_INO,
            journal_dev: 0,
            last_orphan: 0,
            hash_seed: self.hash_seed,
            // Half MD4 of signed bytes.
            def_hash_version: 1,
            flags: 1,
            jnl_backup_type: 1,
            jnl_blocks: journal,
            desc_size: 0,
            // Users' attributes and access control lists.
            default_mount_opts: 0x0c,
            first_meta_bg: 0,
            mkfs_time: now,
            min_extra_isize: 32,
            want_extra_isize: 32,
            log_groups_per_flex: 4,
            checksum_type: 1,
            kbytes_written: (summary.blocks - summary.free_blocks) * BLOCK as u64 / 1024,
            overhead_clusters: 0,
            lpf_ino: 0,
            checksum_seed: 0,
            checksum: 0,
        }
    }
}

/// The feature of room to grow.
const RESIZE_INODE: u32 = 0x10;
