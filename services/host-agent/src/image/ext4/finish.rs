//! What is written when all is known: journal, bitmaps, inode tables; what later layers hid becomes free space.

use mkext4::{
    csum,
    spec::{GroupDesc, JOURNAL_INO, JournalSuperblock, bg_flags, iflags},
};

use super::{
    BLOCK, Error, Writer,
    contents::{EXTENT_MAX, Placed, Run},
    inode::{DIRECTORY, FILE, SIZE},
    space::{GROUP, GROUPS_MAX, Space, TABLE, has_superblock, too_large},
    superblock::{self, Summary},
};

/// Room to work in before a disk is grown, in blocks (64 MiB), beside an eighth of what is used.
const SPARE: u64 = (64 << 20) / BLOCK as u64;
/// Free inodes a group: one for 16 KiB, as mke2fs has it.
const SPARE_INODES: u64 = 8192;
/// The most inodes of a group: as many as a bitmap of one block has bits.
const INODES_MAX: u64 = GROUP;
/// What the last group has at the least: the copies it may have to hold, and some.
const LAST_GROUP: u64 = 1024;

/// Where everything is.
struct Plan {
    blocks: u64,
    groups: u64,
    inodes_per_group: u64,
    journal: Vec<Run>,
    double: u64,
    /// First of each group's block bitmap, inode bitmap and table.
    tables: Vec<(u64, u64, u64)>,
    space: Space,
}

impl Plan {
    fn table_blocks(&self) -> u64 {
        self.inodes_per_group * SIZE as u64 / BLOCK as u64
    }

    /// Decides, for a filesystem of so many groups.
    fn of(mut space: Space, groups: u64, inodes: u64, free: u64) -> Result<Self, Error> {
        let used = space.end();
        let journal_blocks = match used {
            0..0x4_0000 => 4096,
            0x4_0000..0x8_0000 => 8192,
            _ => 16384,
        };
        let mut journal: Vec<Run> = Vec::new();
        let mut left = journal_blocks;
        while left > 0 {
            let (start, count) = space.take(left.min(u64::from(EXTENT_MAX)))?;
            journal.push(Run { logical: (journal_blocks - left) as u32, start: start as u32, count: count as u32 });
            left -= count;
        }
        let (double, _) = space.take(1)?;
        let inodes_per_group = (SPARE_INODES + inodes.div_ceil(groups)).min(INODES_MAX).next_multiple_of(16);
        let mut plan = Self { blocks: 0, groups, inodes_per_group, journal, double, tables: Vec::new(), space };
        for _ in 0..groups {
            let blocks = plan.space.row(1)?;
            let inodes = plan.space.row(1)?;
            let table = plan.space.row(plan.table_blocks())?;
            plan.tables.push((blocks, inodes, table));
        }
        let spare = (SPARE + used / 8).saturating_sub(free);
        let least = (groups - 1) * GROUP + LAST_GROUP;
        let mut blocks = (plan.space.end() + spare).max(least).next_multiple_of(256);
        if !blocks.is_multiple_of(GROUP) && blocks % GROUP < LAST_GROUP {
            blocks = blocks / GROUP * GROUP + LAST_GROUP;
        }
        plan.blocks = blocks;
        Ok(plan)
    }

    /// The smallest that holds so many inodes, of what is used, of which so many blocks are free again.
    fn smallest(space: &Space, inodes: u64, free: u64) -> Result<Self, Error> {
        let mut groups = (inodes + SPARE_INODES / 2).div_ceil(INODES_MAX).max(1);
        loop {
            // More groups need more tables, never fewer, so this comes to an end.
            let plan = Self::of(space.clone(), groups, inodes, free)?;
            let needed = plan.blocks.div_ceil(GROUP);
            if needed > GROUPS_MAX {
                return Err(too_large());
            }
            if needed <= groups {
                return Ok(plan);
            }
            groups = needed;
        }
    }
}

/// A bit for each block.
struct Bits(Vec<u8>);

impl Bits {
    fn mark(&mut self, start: u64, count: u64) {
        let last = ((start + count) / 8) as usize + 1;
        if self.0.len() < last {
            self.0.resize(last, 0);
        }
        for block in start..start + count {
            self.0[(block / 8) as usize] |= 1 << (block % 8);
        }
    }

    fn is_set(&self, block: u64) -> bool {
        self.0.get((block / 8) as usize).is_some_and(|byte| byte & (1 << (block % 8)) != 0)
    }
}

impl Writer {
    /// Writes what is missing. `links` has each inode's links, 0 for what no name leads to any more. Gives the
    /// filesystem's bytes.
    pub(crate) fn finish(mut self, links: &mut Vec<u16>) -> Result<u64, Error> {
        links.resize(self.last_inode as usize + 1, 0);
        links[JOURNAL_INO as usize] = 1;
        let written = self.image.space.end();
        let mut used = self.used(links)?;
        self.free(&used, written)?;
        let taken = (0..written).filter(|block| used.is_set(*block)).count() as u64;
        let plan = Plan::smallest(&self.image.space, u64::from(self.last_inode), written - taken)?;
        self.image.space = plan.space.clone();
        for run in &plan.journal {
            used.mark(u64::from(run.start), u64::from(run.count));
        }
        used.mark(plan.double, 1);
        for (blocks, inodes, table) in &plan.tables {
            for (start, count) in [(*blocks, 1), (*inodes, 1), (*table, plan.table_blocks())] {
                used.mark(start, count);
            }
        }
        for group in (0..plan.groups).filter(|group| has_superblock(*group)) {
            used.mark(group * GROUP, 1 + TABLE);
        }
        self.growing(plan.blocks, plan.double)?;
        let journal = self.journal(&plan)?;
        let directories = self.tables(&plan, links)?;
        let (descriptors, free_blocks, free_inodes) = self.groups(&plan, &used, links, &directories)?;
        let summary = Summary {
            blocks: plan.blocks,
            free_blocks,
            inodes: (plan.inodes_per_group * plan.groups) as u32,
            free_inodes: free_inodes as u32,
            inodes_per_group: plan.inodes_per_group as u32,
            journal,
        };
        self.superblocks(&summary, &descriptors)?;
        self.image.finish(plan.blocks)
    }

    /// Marks the blocks of all inodes that names lead to.
    fn used(&mut self, links: &[u16]) -> Result<Bits, Error> {
        let mut used = Bits(Vec::new());
        used.mark(0, 1 + TABLE);
        for number in (1..=self.last_inode).filter(|number| links[*number as usize] > 0) {
            let inode = self.load(number)?;
            if inode.file_acl > 0 {
                used.mark(inode.file_acl, 1);
            }
            if inode.flags & iflags::EXTENTS != 0 {
                super::contents::visit(&mut self.image, &inode.block, &mut |start, count| used.mark(start, count))?;
            }
        }
        Ok(used)
    }

    /// Gives back what was written and is of no inode.
    fn free(&mut self, used: &Bits, end: u64) -> Result<(), Error> {
        self.image.flush()?;
        let mut at = 0;
        while at < end {
            let start = at;
            while at < end && !used.is_set(at) {
                at += 1;
            }
            if at > start {
                self.image.punch(start, at - start)?;
            }
            at += 1;
        }
        Ok(())
    }

    fn journal(&mut self, plan: &Plan) -> Result<mkext4::spec::Inode, Error> {
        let blocks: u32 = plan.journal.iter().map(|run| run.count).sum();
        let placed = Placed { size: u64::from(blocks) * BLOCK as u64, runs: plan.journal.clone() };
        let mut inode = mkext4::spec::Inode { mode: FILE | 0o600, extra_isize: 32, ..self.dated() };
        self.extents(&mut inode, &placed, 0)?;
        self.store(JOURNAL_INO, &inode)?;
        let mut bytes = [0; BLOCK];
        let superblock = JournalSuperblock {
            // The second version.
            blocktype: 4,
            blocksize: BLOCK as u32,
            maxlen: blocks,
            first: 1,
            sequence: 1,
            start: 0,
            errno: 0,
            feature_compat: 0,
            feature_incompat: 0,
            feature_ro_compat: 0,
            uuid: self.uuid,
            nr_users: 1,
            dynsuper: 0,
            max_transaction: 0,
            max_trans_data: 0,
            checksum_type: 0,
            num_fc_blocks: 0,
            head: 0,
            checksum: 0,
        };
        superblock.encode(&mut bytes);
        self.image.put(u64::from(plan.journal[0].start), &bytes)?;
        Ok(inode)
    }

    /// Writes the inode tables; gives each group's count of directories.
    fn tables(&mut self, plan: &Plan, links: &[u16]) -> Result<Vec<u32>, Error> {
        let mut directories = vec![0; plan.tables.len()];
        let in_block = (BLOCK / SIZE) as u32;
        for first in (1..=self.last_inode).step_by(in_block as usize) {
            let mut block = [0; BLOCK];
            let group = u64::from(first - 1) / plan.inodes_per_group;
            let count = in_block.min(self.last_inode - first + 1);
            self.inodes.read_at(u64::from(first - 1) * SIZE as u64, &mut block)?;
            for (number, inode) in (first..first + count).zip(block.chunks_exact_mut(SIZE)) {
                let links = links[number as usize];
                if links == 0 && number >= mkext4::spec::FIRST_INO {
                    inode.fill(0);
                    continue;
                }
                if links > 0 {
                    inode[26..28].copy_from_slice(&links.to_le_bytes());
                }
                if u16::from_le_bytes([inode[0], inode[1]]) & 0o170_000 == DIRECTORY {
                    directories[group as usize] += 1;
                }
                let sum = csum::inode(self.seed, number, 0, inode);
                inode[124..126].copy_from_slice(&(sum as u16).to_le_bytes());
                if inode[128..130] != [0, 0] {
                    inode[130..132].copy_from_slice(&((sum >> 16) as u16).to_le_bytes());
                }
            }
            let within = u64::from(first - 1) % plan.inodes_per_group / u64::from(in_block);
            self.image.put(plan.tables[group as usize].2 + within, &block)?;
        }
        Ok(directories)
    }

    /// Writes the bitmaps; gives the descriptors, and how many blocks and inodes are free.
    fn groups(
        &mut self,
        plan: &Plan,
        used: &Bits,
        links: &[u16],
        directories: &[u32],
    ) -> Result<(Vec<u8>, u64, u64), Error> {
        let (_, blocks) = superblock::groups(plan.blocks);
        let mut descriptors = vec![0; blocks as usize * BLOCK];
        let (mut all_blocks, mut all_inodes) = (0, 0);
        let per_group = plan.inodes_per_group;
        for (group, (block_bitmap, inode_bitmap, inode_table)) in plan.tables.iter().enumerate() {
            let start = group as u64 * GROUP;
            let there = GROUP.min(plan.blocks - start);
            // What is beyond the end counts as taken.
            let (bytes, free) = bitmap(there, |n| used.is_set(start + n));
            let first = group as u64 * per_group + 1;
            let taken = |n: u64| {
                let number = first + n;
                number < u64::from(mkext4::spec::FIRST_INO)
                    || links.get(number as usize).is_some_and(|links| *links > 0)
            };
            let (inode_bytes, free_inodes) = bitmap(per_group, taken);
            let last = (0..per_group).rev().find(|n| taken(*n)).map_or(0, |n| n + 1);
            let mut descriptor = GroupDesc {
                block_bitmap: *block_bitmap,
                inode_bitmap: *inode_bitmap,
                inode_table: *inode_table,
                free_blocks_count: free as u32,
                free_inodes_count: free_inodes as u32,
                used_dirs_count: directories[group],
                flags: bg_flags::INODE_ZEROED,
                exclude_bitmap: 0,
                block_bitmap_csum: u32::from(csum::block_bitmap(self.seed, &bytes)),
                inode_bitmap_csum: u32::from(csum::inode_bitmap(self.seed, &inode_bytes, per_group as u32)),
                itable_unused: (per_group - last) as u32,
                checksum: 0,
            };
            let into = &mut descriptors[group * 32..group * 32 + 32];
            descriptor.encode32(into);
            descriptor.checksum = csum::group_desc(self.seed, group as u32, into);
            descriptor.encode32(into);
            self.image.put(*block_bitmap, &bytes)?;
            self.image.put(*inode_bitmap, &inode_bytes)?;
            (all_blocks, all_inodes) = (all_blocks + free, all_inodes + free_inodes);
        }
        Ok((descriptors, all_blocks, all_inodes))
    }
}

/// A block of bits of which so many count, the others set; with how many of those are not.
fn bitmap(count: u64, taken: impl Fn(u64) -> bool) -> ([u8; BLOCK], u64) {
    let (mut bytes, mut free) = ([0xff; BLOCK], 0);
    for n in (0..count).filter(|n| !taken(*n)) {
        bytes[(n / 8) as usize] &= !(1 << (n % 8));
        free += 1;
    }
    (bytes, free)
}
