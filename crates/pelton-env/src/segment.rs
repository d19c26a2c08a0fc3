//! Memory that one process writes and another reads: a `memfd` (memfd_create(2)) that has no name, is in no folder, and is
//! freed by the kernel when the last process that maps it is gone.
//!
//! Its size is sealed before anybody else sees it: a reader whose file shrank would be killed (`SIGBUS`) by its next look. Whether the
//! writer may still write is not sealed (it fills the same memory again and again), and neither is whether the reader may: it reads what
//! nobody else does, and to punch holes is how both give memory back, which `F_SEAL_FUTURE_WRITE` would forbid.

use std::io;
use std::os::fd::OwnedFd;

use memmap2::{Mmap, MmapMut, MmapOptions};
use rustix::fs::{
    FallocateFlags, FsWord, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, fstat,
    fstatfs, ftruncate, memfd_create,
};

/// What a segment must be sealed against before it is read.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// The kind of file system that a `memfd` of plain pages is on (statfs(2)); a page of another kind may be missing when it is read.
const TMPFS: FsWord = 0x0102_1994;

/// The writer's end of a segment.
pub struct Segment {
    file: OwnedFd,
    map: MmapMut,
}

impl Segment {
    /// A segment of `bytes` bytes. They cost address space only, until they are written.
    pub fn create(bytes: u64) -> io::Result<Segment> {
        let file = memfd_create("pelton", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, bytes)?;
        fcntl_add_seals(&file, SEALS)?;
        let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
        // SAFETY: the file's size is sealed, so every byte of the mapping stays backed. In this process nothing else maps it for
        // writing; others that have the file may write to it, and what is there is therefore never read through this mapping.
        #[expect(unsafe_code, reason = "there is no safe way to map memory")]
        let map = unsafe { MmapOptions::new().len(length).map_mut(&file)? };
        Ok(Segment { file, map })
    }

    /// What the reader opens it by.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.file.try_clone()
    }

    /// All of it, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }

    /// Gives the memory of a range back to the system. It is zero when it is looked at again.
    pub fn give_back(&self, offset: u64, length: u64) -> io::Result<()> {
        punch(&self.file, offset, length)
    }
}

/// The reader's end of a segment. What is in it may change at any time.
pub struct SegmentView {
    file: OwnedFd,
    map: Mmap,
}

impl SegmentView {
    /// Opens what a peer gave. Refused unless it is what was announced: a sealed `memfd` of exactly `bytes` bytes.
    pub fn open(file: OwnedFd, bytes: u64) -> io::Result<SegmentView> {
        let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let seals = fcntl_get_seals(&file).map_err(|e| bad(format!("it is no sealed memory: {e}")))?;
        if !seals.contains(SEALS) {
            return Err(bad("its size is not sealed".to_owned()));
        }
        if fstatfs(&file)?.f_type != TMPFS {
            return Err(bad("it is not of plain pages".to_owned()));
        }
        let size = fstat(&file)?.st_size;
        if size != i64::try_from(bytes).unwrap_or(-1) || size == 0 {
            return Err(bad(format!("it has {size} bytes, not {bytes}")));
        }
        // SAFETY: the file's size is sealed and was checked after that, so every byte of the mapping stays backed. The writer may change
        // what is read: those who read it take nothing that they have checked for granted later (`pelton_wire::in_place`).
        #[expect(unsafe_code, reason = "there is no safe way to map memory")]
        let map = unsafe { MmapOptions::new().len(size as usize).map(&file)? };
        Ok(SegmentView { file, map })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Gives the memory of a range back to the system, once its writer is gone.
    pub fn give_back(&self, offset: u64, length: u64) -> io::Result<()> {
        punch(&self.file, offset, length)
    }
}

fn punch(file: &OwnedFd, offset: u64, length: u64) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn what_one_end_writes_the_other_reads() {
        let mut segment = Segment::create(1 << 20).unwrap();
        let view = SegmentView::open(segment.descriptor().unwrap(), 1 << 20).unwrap();
        segment.bytes_mut()[5000..5003].copy_from_slice(&[1, 2, 3]);
        assert_eq!(view.bytes()[4999..5004], [0, 1, 2, 3, 0]);
        segment.give_back(4096, 4096).unwrap();
        assert_eq!(view.bytes()[5000..5003], [0; 3]);
    }

    #[test]
    fn only_sealed_memory_of_the_announced_size_is_opened() {
        let check = |file: OwnedFd, bytes: u64, expected: &str| match SegmentView::open(file, bytes) {
            Ok(_) => panic!("{expected}"),
            Err(e) => assert!(e.to_string().contains(expected), "{e}"),
        };
        let memory = |bytes: u64, seals: SealFlags| {
            let file = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
            ftruncate(&file, bytes).unwrap();
            fcntl_add_seals(&file, seals).unwrap();
            file
        };
        check(memory(4096, SEALS), 8192, "it has 4096 bytes, not 8192");
        check(memory(0, SEALS), 0, "it has 0 bytes");
        check(memory(4096, SealFlags::empty()), 4096, "its size is not sealed");
        check(memory(4096, SealFlags::GROW | SealFlags::SEAL), 4096, "its size is not sealed");
        check(File::open("/dev/null").unwrap().into(), 4096, "it is no sealed memory");
        check(File::open("/proc/self/exe").unwrap().into(), 4096, "it is no sealed memory");
    }

    #[test]
    fn its_size_can_be_changed_by_nobody() {
        let segment = Segment::create(1 << 20).unwrap();
        let file = segment.descriptor().unwrap();
        for bytes in [0, 4096, 2 << 20] {
            assert!(ftruncate(&file, bytes).is_err(), "{bytes}");
        }
    }
}
