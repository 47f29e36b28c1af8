//! Rollback journals: they belong to one connection, live in memory (a long one in a file without a name), and go with it.
//!
//! On the host's disk a journal would outlive a crash, and be played back over a newer database. Here a crash leaves nothing to roll back:
//! what was not committed is nowhere.

use std::ffi::{c_int, c_void};
use std::io::{Read, Seek, SeekFrom, Write};

use tempfile::SpooledTempFile;

use super::api::{IoMethods, SqliteFile, code};
use super::guarded;

/// Longer journals are kept in a file.
const IN_MEMORY: usize = 4 << 20;

#[repr(C)]
struct Journal {
    base: SqliteFile,
    bytes: *mut SpooledTempFile,
}

pub(super) const SIZE: usize = size_of::<Journal>();

/// Opens an empty journal.
///
/// # Safety
/// `file` must have room for [`SIZE`] bytes, and `out_flags` be null or lead to a number.
pub(super) unsafe fn open(file: *mut SqliteFile, flags: c_int, out_flags: *mut c_int) -> c_int {
    let file = file.cast::<Journal>();
    // SAFETY: as the caller promises.
    unsafe {
        if !out_flags.is_null() {
            *out_flags = flags;
        }
        (*file).bytes = Box::into_raw(Box::new(SpooledTempFile::new(IN_MEMORY)));
        (*file).base.methods = &raw const METHODS;
    }
    code::OK
}

static METHODS: IoMethods = IoMethods {
    version: 1,
    close: x_close,
    read: x_read,
    write: x_write,
    truncate: x_truncate,
    sync: x_sync,
    file_size: x_file_size,
    lock: x_lock,
    unlock: x_lock,
    check_reserved_lock: x_check_reserved_lock,
    file_control: x_file_control,
    sector_size: super::x_sector_size,
    device_characteristics: super::x_device_characteristics,
};

/// # Safety
/// `file` must be an open journal, which only one thread uses at a time, as SQLite has it.
unsafe fn bytes<'a>(file: *mut SqliteFile) -> &'a mut SpooledTempFile {
    // SAFETY: as the caller promises.
    unsafe { &mut *(*file.cast::<Journal>()).bytes }
}

unsafe extern "C" fn x_close(file: *mut SqliteFile) -> c_int {
    // SAFETY: SQLite passes an open journal, and does not use it again.
    guarded(code::OK, || unsafe {
        let file = file.cast::<Journal>();
        drop(Box::from_raw(std::mem::replace(&mut (*file).bytes, std::ptr::null_mut())));
        (*file).base.methods = std::ptr::null();
        code::OK
    })
}

unsafe extern "C" fn x_read(file: *mut SqliteFile, into: *mut c_void, len: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite passes an open journal and room for `len` bytes.
    guarded(code::IOERR_READ, || unsafe {
        let (Ok(len), Ok(offset)) = (usize::try_from(len), u64::try_from(offset)) else { return code::IOERR_READ };
        let into = std::slice::from_raw_parts_mut(into.cast::<u8>(), len);
        let bytes = bytes(file);
        let mut have = 0;
        if bytes.seek(SeekFrom::Start(offset)).is_err() {
            return code::IOERR_READ;
        }
        while have < len {
            match bytes.read(&mut into[have..]) {
                Ok(0) => break,
                Ok(count) => have += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return code::IOERR_READ,
            }
        }
        into[have..].fill(0);
        if have == len { code::OK } else { code::IOERR_SHORT_READ }
    })
}

unsafe extern "C" fn x_write(file: *mut SqliteFile, from: *const c_void, len: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite passes an open journal and `len` bytes.
    guarded(code::IOERR_WRITE, || unsafe {
        let (Ok(len), Ok(offset)) = (usize::try_from(len), u64::try_from(offset)) else { return code::IOERR_WRITE };
        let from = std::slice::from_raw_parts(from.cast::<u8>(), len);
        let bytes = bytes(file);
        match bytes.seek(SeekFrom::Start(offset)).and_then(|_| bytes.write_all(from)) {
            Ok(()) => code::OK,
            Err(error) => {
                super::tell(&format!("cannot write a rollback journal: {error}"));
                code::IOERR_WRITE
            }
        }
    })
}

unsafe extern "C" fn x_truncate(file: *mut SqliteFile, size: i64) -> c_int {
    // SAFETY: SQLite passes an open journal.
    guarded(code::IOERR_TRUNCATE, || unsafe {
        let size = u64::try_from(size).unwrap_or(0);
        if bytes(file).set_len(size).is_ok() { code::OK } else { code::IOERR_TRUNCATE }
    })
}

unsafe extern "C" fn x_file_size(file: *mut SqliteFile, size: *mut i64) -> c_int {
    // SAFETY: SQLite passes an open journal and room for a number.
    guarded(code::IOERR_FSTAT, || unsafe {
        match bytes(file).seek(SeekFrom::End(0)) {
            Ok(end) => {
                *size = i64::try_from(end).unwrap_or(i64::MAX);
                code::OK
            }
            Err(_) => code::IOERR_FSTAT,
        }
    })
}

unsafe extern "C" fn x_sync(_: *mut SqliteFile, _: c_int) -> c_int {
    // It does not outlive the process, so there is nothing to sync.
    code::OK
}

unsafe extern "C" fn x_lock(_: *mut SqliteFile, _: c_int) -> c_int {
    code::OK
}

unsafe extern "C" fn x_check_reserved_lock(_: *mut SqliteFile, held: *mut c_int) -> c_int {
    // SAFETY: SQLite passes room for a number.
    unsafe { *held = 0 };
    code::OK
}

unsafe extern "C" fn x_file_control(_: *mut SqliteFile, _: c_int, _: *mut c_void) -> c_int {
    code::NOTFOUND
}
