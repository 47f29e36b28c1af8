//! One module a command.

pub(crate) mod compact;
pub(crate) mod databases;
pub(crate) mod follow;
pub(crate) mod generate;
pub(crate) mod local;
pub(crate) mod ltx;
pub(crate) mod replicate;
pub(crate) mod reset;
pub(crate) mod restore;
pub(crate) mod status;
pub(crate) mod version;
pub(crate) mod vfs_buffer;
pub(crate) mod vfs_shell;
