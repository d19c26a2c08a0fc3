//! Memory for bodies that come through the socket, used again: to touch fresh pages costs as much as to receive into them.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

/// Shorter ones come from the allocator, which uses their pages again by itself.
const SMALLEST: usize = 64 << 10;
/// What waits to be used again is at most so many bytes.
const MOST: usize = 32 << 20;

/// The buffers of one connection.
#[derive(Clone, Default)]
pub(crate) struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

impl Pool {
    /// An empty buffer, of the capacity `enough` if there is one that was used before, and else of `first`.
    pub(crate) fn take(&self, enough: usize, first: usize) -> Vec<u8> {
        if enough < SMALLEST {
            return Vec::with_capacity(first);
        }
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest that is large enough, unless that wastes most of it.
        let fits = |(_, buffer): &(usize, &Vec<u8>)| {
            (enough..=enough.saturating_mul(4)).contains(&buffer.capacity())
        };
        let best = idle.iter().enumerate().filter(fits).min_by_key(|(_, buffer)| buffer.capacity());
        match best.map(|(at, _)| at) {
            Some(at) => idle.swap_remove(at),
            None => Vec::with_capacity(first),
        }
    }

    /// Its bytes, to be shared; the buffer comes back when nobody has them any more.
    pub(crate) fn share(&self, buffer: Vec<u8>) -> Bytes {
        if buffer.capacity() < SMALLEST {
            return buffer.into();
        }
        Bytes::from_owner(Pooled { buffer, pool: Arc::downgrade(&self.0) })
    }

    /// A copy of these.
    pub(crate) fn copy(&self, bytes: &[u8]) -> Bytes {
        let mut buffer = self.take(bytes.len(), bytes.len());
        buffer.extend_from_slice(bytes);
        self.share(buffer)
    }
}

struct Pooled {
    buffer: Vec<u8>,
    pool: Weak<Mutex<Vec<Vec<u8>>>>,
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade().filter(|_| self.buffer.capacity() <= MOST) else { return };
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut idle = pool.lock().unwrap_or_else(PoisonError::into_inner);
        // The oldest go first.
        idle.push(buffer);
        let mut total: usize = idle.iter().map(Vec::capacity).sum();
        let mut surplus = Vec::new();
        while total > MOST {
            let oldest = idle.remove(0);
            total -= oldest.capacity();
            surplus.push(oldest);
        }
        drop(idle);
        drop(surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_nobody_has_any_more_is_used_again() {
        let pool = Pool::default();
        let bytes = pool.copy(&vec![1; 1 << 20]);
        let place = bytes.as_ptr();
        let slice = bytes.slice(5..10);
        drop(bytes);
        assert_ne!(pool.copy(&vec![2; 1 << 20]).as_ptr(), place, "somebody still looks at it");
        drop(slice);
        let both = [pool.take(1 << 20, 0), pool.take(1 << 20, 0)];
        assert!(both.iter().any(|b| b.as_ptr() == place) && both.iter().all(|b| b.is_empty()));
        assert_eq!(pool.take(1 << 20, 77).capacity(), 77, "there is none left");
    }

    #[test]
    fn what_waits_is_bounded() {
        let pool = Pool::default();
        let many: Vec<Bytes> = (0..100).map(|_| pool.copy(&vec![1; 1 << 20])).collect();
        drop(many);
        let idle: usize = pool.0.lock().unwrap().iter().map(Vec::capacity).sum();
        assert_eq!(idle, MOST);
        for not_kept in [2 * MOST, 100] {
            drop(pool.copy(&vec![1; not_kept]));
            assert!(pool.0.lock().unwrap().iter().all(|b| b.capacity() == 1 << 20), "{not_kept}");
        }
    }
}
