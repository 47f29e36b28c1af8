//! What unit tests make go wrong, each in its own thread.

use std::cell::Cell;

thread_local! {
    /// The file system that every file lies on.
    pub(crate) static FILE_SYSTEM: Cell<Option<u32>> = const { Cell::new(None) };
    /// Whether the kernel knows no locks of open file descriptions.
    pub(crate) static NO_OFD_LOCKS: Cell<bool> = const { Cell::new(false) };
}
