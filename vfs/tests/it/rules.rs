//! The rules of the VFS, by number.
