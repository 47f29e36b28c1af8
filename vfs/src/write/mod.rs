//! Write mode: committed pages in a local buffer (`buffer`), what they add up to in front of a view (`layer`), one transaction at a time
//! (`writer`), and their way into the replica (`upload`).

pub mod buffer;
mod control;
pub(crate) mod layer;
mod lease;
mod pages;
pub(crate) mod probe;
mod segment;
pub(crate) mod upload;
pub(crate) mod writer;
