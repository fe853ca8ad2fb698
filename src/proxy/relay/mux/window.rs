//! How much the peer may send on one stream before our application has taken it.
//!
//! Small, so that thousands of applications that do not read cost little; it grows where bytes come in quantity and the
//! application takes them at once, as long as all streams of the thread together do not have too much. A peer that sends
//! nothing for a while gives back what it grew by.

use std::cell::Cell;

use super::super::socket;

thread_local! {
    /// What the windows of all streams of this thread have grown by.
    static GROWN: Cell<u32> = const { Cell::new(0) };
}

/// What they may grow by, and have kept.
const PLENTY: usize = 4 << 20;
/// What one grows to.
pub(super) const LARGEST: u32 = 512 << 10;

/// The window of one stream.
#[derive(Debug)]
pub(super) struct Window {
    /// What the peer may still send.
    allowed: u32,
    size: u32,
}

impl Drop for Window {
    fn drop(&mut self) {
        self.resize(Self::FIRST);
    }
}

impl Window {
    /// Where each stream begins, at both ends.
    pub(super) const FIRST: u32 = 16 << 10;

    /// Of a new stream.
    pub(super) const fn new() -> Self {
        Self { allowed: Self::FIRST, size: Self::FIRST }
    }

    fn resize(&mut self, size: u32) {
        // A thread that ends has nothing to count any more.
        let _ = GROWN.try_with(|grown| grown.set((grown.get() + size).saturating_sub(self.size)));
        self.size = size;
    }

    /// The peer has sent `length` bytes; answers whether it might.
    pub(super) fn came(&mut self, length: usize) -> bool {
        let left = u32::try_from(length).ok().and_then(|length| self.allowed.checked_sub(length));
        self.allowed = left.unwrap_or(0);
        left.is_some()
    }

    /// The peer gives back `less` of what it may send; answers whether it had that.
    pub(super) fn returned(&mut self, less: u32) -> bool {
        let Some(left) = self.allowed.checked_sub(less) else { return false };
        self.allowed = left;
        self.resize(left.clamp(Self::FIRST, self.size));
        true
    }

    /// The application has taken `length` bytes, `at_once` or not, and none wait for it. Answers what more the peer may
    /// send; `None` = that is not worth a word yet.
    pub(super) fn took(&mut self, length: usize, at_once: bool) -> Option<u32> {
        if !at_once {
            self.resize(Self::FIRST);
        } else if length >= self.size as usize / 4 && self.size < LARGEST {
            let grown = GROWN.with(Cell::get) as usize + socket::kept() + self.size as usize;
            if grown <= PLENTY {
                self.resize(self.size * 2);
            }
        }
        if self.allowed > self.size / 2 {
            return None;
        }
        Some(self.size - std::mem::replace(&mut self.allowed, self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_sends_more_than_was_allowed_is_seen() {
        let mut window = Window::new();
        assert!(window.came(Window::FIRST as usize));
        assert!(!window.came(1));
    }

    #[test]
    fn what_is_taken_may_be_sent_again_in_portions_worth_a_word() {
        let mut window = Window::new();
        assert!(window.came(1000));
        assert_eq!(window.took(1000, true), None);
        for told in [None, None, Some(10_000)] {
            assert!(window.came(3_000));
            assert_eq!(window.took(3_000, true), told);
        }
        assert_eq!(window.allowed, Window::FIRST);
    }

    #[test]
    fn it_grows_for_what_comes_in_quantity_and_shrinks_for_an_application_that_lags() {
        let mut window = Window::new();
        for _ in 0..100 {
            let all = window.allowed as usize;
            assert!(window.came(all));
            window.took(all, true);
        }
        assert_eq!(window.allowed, LARGEST);
        assert_eq!(GROWN.get(), LARGEST - Window::FIRST);
        assert!(window.came(LARGEST as usize));
        assert_eq!(window.took(LARGEST as usize, false), Some(Window::FIRST));
        assert_eq!(GROWN.get(), 0);
    }

    #[test]
    fn what_is_given_back_makes_room_for_others() {
        let mut window = Window::new();
        for _ in 0..10 {
            let all = window.allowed;
            assert!(window.came(all as usize));
            window.took(all as usize, true);
        }
        assert!(!window.returned(LARGEST + 1), "more than there was");
        assert!(window.returned(LARGEST - Window::FIRST));
        assert_eq!((window.allowed, GROWN.get()), (Window::FIRST, 0));
        assert!(window.returned(Window::FIRST));
        assert_eq!((window.allowed, window.size), (0, Window::FIRST));
    }

    #[test]
    fn all_windows_of_a_thread_together_have_a_bound() {
        let mut windows: Vec<Window> = (0..100).map(|_| Window::new()).collect();
        for _ in 0..10 {
            for window in &mut windows {
                let all = window.allowed as usize;
                assert!(window.came(all));
                window.took(all, true);
            }
        }
        let sum: usize = windows.iter().map(|window| window.size as usize).sum();
        assert!(sum <= PLENTY + 100 * Window::FIRST as usize, "{sum}");
        assert!(windows.iter().all(|window| window.allowed >= Window::FIRST));
        drop(windows);
        assert_eq!(GROWN.get(), 0);
    }
}
