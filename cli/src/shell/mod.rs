//! The SQL shell over the VFS. Lines come in ([`editor`], [`script`]), statements are found in them ([`splitter`]), run ([`session`]), and
//! their rows written ([`mod@print`], [`sink`]). Everything here is about one connection and one user; what `litestream vfs-shell` opens is
//! decided in `commands::vfs_shell`.

pub(crate) mod address;
mod complete;
pub(crate) mod dot;
mod dump;
pub(crate) mod editor;
pub(crate) mod interrupts;
mod print;
pub(crate) mod script;
pub(crate) mod session;
mod sink;
mod splitter;
mod table;
pub(crate) mod values;
