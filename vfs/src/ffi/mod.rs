//! Where SQLite calls us: the only code that may be `unsafe`.
//!
//! Every callback catches panics, since none may cross into the host, and turns errors into SQLite's codes. What happens is decided in
//! `connection`; here is only how it is said in C.
//!
//! A process may hold several SQLites (Python's own and apsw's, say), and each loads this extension for itself: everything hangs off a
//! `Host`, of which there is one for each.
#![allow(unsafe_code)]

mod api;
mod functions;
mod journal;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use api::{Api, EntryPoint, IoMethods, Sqlite, SqliteFile, Symbol, Vfs, c_string, code};

use crate::connection::{Connection, Pragma};
use crate::settings::Parameters;
use crate::{Error, process};

/// The name under which the VFS is found: `file:my.db?vfs=litestream`.
pub const VFS_NAME: &str = "litestream";
const VFS_NAME_C: &CStr = c"litestream";
/// How long a file name may be. Names are not paths here: nothing is looked up with them.
const MAX_PATHNAME: c_int = 4096;

/// How many SQLites one process may hold.
const MAX_HOSTS: usize = 8;

/// One SQLite of the process, and our VFS in it. Lives for ever.
struct Host {
    /// Its place among [`HOSTS`].
    number: usize,
    table: usize,
    api: Api,
    /// The host's own VFS, for temporary files, time and randomness.
    default: *mut Vfs,
    vfs: *mut Vfs,
}

// SAFETY: the pointers lead to structures that live for ever and are never written again once `Host` exists, except `Vfs::next`, which
// belongs to SQLite and is guarded by its mutex.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

static HOSTS: Mutex<Vec<&'static Host>> = Mutex::new(Vec::new());

/// Our part of a `sqlite3_file`.
#[repr(C)]
struct File {
    base: SqliteFile,
    open: *mut Open,
}

/// An open main database.
struct Open {
    host: &'static Host,
    /// Where SQLite keeps the connection that uses the file now: with a shared cache that changes.
    db: *mut *mut Sqlite,
    connection: Mutex<Connection>,
}

/// The entry point that SQLite looks for when it loads the extension.
///
/// # Safety
/// Only for SQLite to call, with a connection, a place for an error text, and its `sqlite3_api_routines`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_litestreamvfs_init(
    db: *mut c_void,
    error: *mut *mut c_char,
    table: *const c_void,
) -> c_int {
    let loaded = catch_unwind(AssertUnwindSafe(|| {
        crate::log::init();
        // SAFETY: SQLite passes its table.
        let host = unsafe { host(table) }?;
        // SAFETY: SQLite passes an open connection.
        unsafe { functions::define(host, db.cast()) };
        Ok(())
    }));
    match loaded.unwrap_or_else(|_| Err("it panicked".to_owned())) {
        Ok(()) => code::OK_LOAD_PERMANENTLY,
        Err(why) => {
            if !error.is_null() {
                // The host's own allocator may be just what is missing.
                // SAFETY: SQLite passes its table or null, and a place for the text.
                unsafe {
                    if let Ok(api) = api::read_table(table) {
                        *error = api.text(&format!("cannot load the litestream VFS: {why}"));
                    }
                }
            }
            tracing::error!(why, "cannot load the litestream VFS");
            code::ERROR
        }
    }
}

/// Called for every connection that is opened later. It never fails: most of them have nothing to do with us.
unsafe extern "C" fn on_connection(db: *mut Sqlite, _: *mut *mut c_char, table: *const c_void) -> c_int {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let host = lock(&HOSTS).iter().copied().find(|host| host.table == table.addr());
        if let Some(host) = host {
            // SAFETY: SQLite passes an open connection.
            unsafe { functions::define(host, db) };
        }
    }));
    code::OK
}

/// Registers the VFS with the SQLite that a program is linked with.
///
/// `auto_extension` is that SQLite's `sqlite3_auto_extension`, for example `rusqlite::ffi::sqlite3_auto_extension`. The VFS can be used from
/// the second connection on: open one to `:memory:` first, and close it.
pub fn register<D, A>(
    auto_extension: unsafe extern "C" fn(
        Option<unsafe extern "C" fn(*mut D, *mut *mut c_char, *const A) -> c_int>,
    ) -> c_int,
) -> bool {
    /// As SQLite calls it, in its types.
    ///
    /// # Safety
    /// As [`sqlite3_litestreamvfs_init`].
    unsafe extern "C" fn entry<D, A>(db: *mut D, error: *mut *mut c_char, table: *const A) -> c_int {
        // SAFETY: as the caller promises.
        match unsafe { sqlite3_litestreamvfs_init(db.cast(), error, table.cast()) } {
            code::OK_LOAD_PERMANENTLY => code::OK,
            other => other,
        }
    }
    // SAFETY: the type is that of `sqlite3_auto_extension` alone; it only notes the address.
    unsafe { auto_extension(Some(entry::<D, A>)) == code::OK }
}

/// Keeps a thread of ours from taking the host's signals, and from dying of a closed connection (`SIGPIPE`).
pub(crate) fn block_signals() {
    // SAFETY: a set is filled before it is used; only this thread's mask changes.
    unsafe {
        let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut());
    }
}

/// How many forks lie between this process and the one that first asked. `None` where forks cannot be noticed.
///
/// To ask for the process's number is a system call, which is too much for each read.
pub(crate) fn forks() -> Option<u32> {
    static WATCHED: Once = Once::new();
    static NOTICED: AtomicBool = AtomicBool::new(false);
    extern "C" fn forked() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    WATCHED.call_once(|| {
        // SAFETY: the handler only counts, and stays where it is as long as the process lives: this library is never unloaded.
        let result = unsafe { libc::pthread_atfork(None, None, Some(forked)) };
        NOTICED.store(result == 0, Ordering::Relaxed);
    });
    NOTICED.load(Ordering::Relaxed).then(|| FORKS.load(Ordering::Relaxed))
}

static FORKS: AtomicU32 = AtomicU32::new(0);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The host of a table. The first time, the VFS is registered with it.
///
/// # Safety
/// `table` must be a host's `sqlite3_api_routines`.
unsafe fn host(table: *const c_void) -> Result<&'static Host, String> {
    let mut hosts = lock(&HOSTS);
    if let Some(host) = hosts.iter().find(|host| host.table == table.addr()) {
        return Ok(host);
    }
    if hosts.len() >= MAX_HOSTS {
        return Err(format!("this process holds more than {MAX_HOSTS} SQLites"));
    }
    // SAFETY: as the caller promises.
    let api = unsafe { api::read_table(table) }?;
    let default = api.default_vfs();
    if default.is_null() {
        return Err("this SQLite has no VFS of its own".to_owned());
    }
    // SAFETY: SQLite's default VFS lives for ever.
    let os_file = unsafe { (*default).os_file }.max(size_of::<File>().max(journal::SIZE) as c_int);
    // All that could fail is behind us: once SQLite knows these addresses they must stay.
    let host =
        Box::leak(Box::new(Host { number: hosts.len(), table: table.addr(), api, default, vfs: std::ptr::null_mut() }));
    let host_pointer: *mut Host = host;
    let vfs = Box::leak(Box::new(Vfs {
        version: 2,
        os_file,
        max_pathname: MAX_PATHNAME,
        next: std::ptr::null_mut(),
        name: VFS_NAME_C.as_ptr(),
        app_data: host_pointer.cast(),
        open: x_open,
        delete: x_delete,
        access: x_access,
        full_pathname: x_full_pathname,
        dl_open: Some(x_dl_open),
        dl_error: Some(x_dl_error),
        dl_sym: Some(x_dl_sym),
        dl_close: Some(x_dl_close),
        randomness: x_randomness,
        sleep: x_sleep,
        current_time: x_current_time,
        last_error: None,
        current_time_64: Some(x_current_time_64),
    }));
    host.vfs = vfs;
    let host: &'static Host = host;
    // SAFETY: the structure was just leaked.
    if unsafe { host.api.register_vfs(host.vfs) } != code::OK {
        return Err("this SQLite does not take a VFS".to_owned());
    }
    host.api.auto_extension(on_connection as EntryPoint);
    hosts.push(host);
    Ok(host)
}

/// Runs a callback; a panic becomes `failed`.
fn guarded(failed: c_int, work: impl FnOnce() -> c_int) -> c_int {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        tell(&panicked(&*panic));
        failed
    })
}

fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let text = text.map(|text| format!(": {text}")).unwrap_or_default();
    format!("a panic in the litestream VFS{text}: this is a bug, please report it")
}

/// Notes an error's text, and writes it to the error log of each SQLite of the process: SQLite itself shows only texts of its own.
///
/// Only for threads of the host's, since nobody knows what its log does.
pub(crate) fn tell(text: &str) {
    process::note_error(text);
    // In a forked child the lock may be held by a thread that is not there.
    let hosts = HOSTS.try_lock().map(|hosts| hosts.clone()).unwrap_or_default();
    for host in hosts {
        host.api.log(text);
    }
}

/// The host of a VFS.
///
/// # Safety
/// `vfs` must be one of ours.
unsafe fn host_of(vfs: *mut Vfs) -> &'static Host {
    // SAFETY: as the caller promises; `app_data` leads to a `Host` that was leaked.
    unsafe { &*(*vfs).app_data.cast::<Host>() }
}

/// # Safety
/// `file` must be an open file of ours.
unsafe fn opened<'a>(file: *mut SqliteFile) -> &'a Open {
    // SAFETY: as the caller promises: `x_open` has filled it, `x_close` has not yet emptied it.
    unsafe { &*(*file.cast::<File>()).open }
}

impl Open {
    /// Runs something on the connection, which may wait for the network as long as nobody interrupts it.
    fn with<T>(&self, work: impl FnOnce(&mut Connection, &dyn Fn() -> bool) -> T) -> T {
        let mut connection = lock(&self.connection);
        #[cfg(test)]
        tests::panic_if_told();
        // SAFETY: SQLite keeps the connection that uses the file here, and that runs on this thread.
        let interrupts = unsafe {
            let db = if self.db.is_null() { std::ptr::null_mut() } else { *self.db };
            self.host.api.interrupts(db)
        };
        work(&mut connection, &|| interrupts.any())
    }

    /// Like [`Open::with`], on behalf of a connection that the caller knows. With a shared cache, only a callback of the file's own may ask the
    /// file who uses it: elsewhere that may be another connection, and gone before the answer.
    ///
    /// # Safety
    /// `db` must be the connection on whose behalf this thread runs.
    unsafe fn with_db<T>(&self, db: *mut Sqlite, work: impl FnOnce(&mut Connection, &dyn Fn() -> bool) -> T) -> T {
        let mut connection = lock(&self.connection);
        #[cfg(test)]
        tests::panic_if_told();
        // SAFETY: as the caller promises.
        let interrupts = unsafe { self.host.api.interrupts(db) };
        work(&mut connection, &|| interrupts.any())
    }

    fn failed(&self, error: &Error, otherwise: c_int) -> c_int {
        match error {
            // No trouble: the host tries again.
            Error::Interrupted => return code::INTERRUPT,
            Error::Busy => return code::BUSY,
            Error::BusySnapshot => return code::BUSY_SNAPSHOT,
            _ => {}
        }
        tell(&error.to_string());
        match error {
            Error::ReadOnly(_) => code::READONLY,
            // As if it had been noticed when it was opened.
            Error::Empty { .. } => code::CANTOPEN,
            _ => otherwise,
        }
    }
}

unsafe extern "C" fn x_open(
    vfs: *mut Vfs,
    name: *const c_char,
    file: *mut SqliteFile,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes our VFS, room for our file, and a name that is null or fit for `sqlite3_uri_parameter`.
    guarded(code::CANTOPEN, || unsafe {
        (*file).methods = std::ptr::null();
        #[cfg(test)]
        tests::panic_if_told();
        let host = host_of(vfs);
        if flags & code::OPEN_TEMPORARY != 0 {
            return ((*host.default).open)(host.default, name, file, flags, out_flags);
        }
        if flags & code::OPEN_JOURNAL != 0 {
            return journal::open(file, flags, out_flags);
        }
        if flags & code::OPEN_MAIN_DB == 0 || name.is_null() {
            return code::CANTOPEN;
        }
        let path = CStr::from_ptr(name).to_string_lossy();
        let path = path.split_once(SHARED).map_or(&*path, |(path, _)| path).to_owned();
        let parameters = Parameters::new(path, |key| host.api.uri_parameter(name, &c_string(key)));
        match Connection::open(&parameters, flags & code::OPEN_READWRITE == 0) {
            Ok(connection) => {
                if !out_flags.is_null() {
                    let mode = code::OPEN_READONLY | code::OPEN_READWRITE;
                    let ours = if connection.is_fixed() { code::OPEN_READONLY } else { code::OPEN_READWRITE };
                    *out_flags = flags & !mode | ours;
                }
                let open = Open { host, db: std::ptr::null_mut(), connection: Mutex::new(connection) };
                let file = file.cast::<File>();
                (*file).open = Box::into_raw(Box::new(open));
                (*file).base.methods = &raw const METHODS;
                code::OK
            }
            Err(error) => {
                tell(&error.to_string());
                code::CANTOPEN
            }
        }
    })
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
    unlock: x_unlock,
    check_reserved_lock: x_check_reserved_lock,
    file_control: x_file_control,
    sector_size: x_sector_size,
    device_characteristics: x_device_characteristics,
};

unsafe extern "C" fn x_close(file: *mut SqliteFile) -> c_int {
    // SAFETY: SQLite passes an open file of ours, and does not use it again.
    guarded(code::OK, || unsafe {
        let file = file.cast::<File>();
        let open = Box::from_raw(std::mem::replace(&mut (*file).open, std::ptr::null_mut()));
        (*file).base.methods = std::ptr::null();
        let inherited = {
            let mut connection = lock(&open.connection);
            #[cfg(test)]
            tests::panic_if_told();
            connection.close();
            connection.is_inherited()
        };
        if inherited {
            // To drop its client would wake the parent's threads, by queues whose locks they may have held when it forked.
            std::mem::forget(open);
        }
        code::OK
    })
}

unsafe extern "C" fn x_read(file: *mut SqliteFile, into: *mut c_void, len: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite passes an open file of ours and room for `len` bytes.
    guarded(code::IOERR_READ, || unsafe {
        let (Ok(len), Ok(offset)) = (usize::try_from(len), u64::try_from(offset)) else { return code::IOERR_READ };
        let into = std::slice::from_raw_parts_mut(into.cast::<u8>(), len);
        let open = opened(file);
        match open.with(|connection, stop| connection.read(into, offset, stop)) {
            Ok(have) if have == len => code::OK,
            Ok(have) => {
                into[have..].fill(0);
                code::IOERR_SHORT_READ
            }
            Err(error) => open.failed(&error, code::IOERR_READ),
        }
    })
}

unsafe extern "C" fn x_write(file: *mut SqliteFile, from: *const c_void, len: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite passes an open file of ours and `len` bytes.
    guarded(code::IOERR_WRITE, || unsafe {
        let (Ok(len), Ok(offset)) = (usize::try_from(len), u64::try_from(offset)) else { return code::IOERR_WRITE };
        let bytes = std::slice::from_raw_parts(from.cast::<u8>(), len);
        let open = opened(file);
        let written = open.with(|connection, stop| connection.write(bytes, offset, stop));
        written.map_or_else(|error| open.failed(&error, code::IOERR_WRITE), |()| code::OK)
    })
}

unsafe extern "C" fn x_truncate(file: *mut SqliteFile, size: i64) -> c_int {
    // SAFETY: SQLite passes an open file of ours.
    guarded(code::IOERR_TRUNCATE, || unsafe {
        let Ok(size) = u64::try_from(size) else { return code::IOERR_TRUNCATE };
        let open = opened(file);
        let cut = open.with(|connection, _| connection.truncate(size));
        cut.map_or_else(|error| open.failed(&error, code::IOERR_TRUNCATE), |()| code::OK)
    })
}

unsafe extern "C" fn x_sync(file: *mut SqliteFile, _: c_int) -> c_int {
    // SAFETY: SQLite passes an open file of ours. All is synced at once, when the transaction commits.
    guarded(code::IOERR_FSYNC, || unsafe {
        opened(file).with(|connection, _| connection.sync());
        code::OK
    })
}

unsafe extern "C" fn x_file_size(file: *mut SqliteFile, size: *mut i64) -> c_int {
    // SAFETY: SQLite passes an open file of ours and room for a number.
    guarded(code::IOERR_FSTAT, || unsafe {
        let bytes = opened(file).with(|connection, _| connection.size());
        *size = i64::try_from(bytes).unwrap_or(i64::MAX);
        code::OK
    })
}

unsafe extern "C" fn x_lock(file: *mut SqliteFile, level: c_int) -> c_int {
    // SAFETY: SQLite passes an open file of ours.
    guarded(code::IOERR_LOCK, || unsafe {
        let open = opened(file);
        let locked = open.with(|connection, stop| match level {
            code::LOCK_NONE => Ok(()),
            code::LOCK_SHARED => connection.begin(stop),
            _ => connection.begin_write(),
        });
        locked.map_or_else(|error| open.failed(&error, code::IOERR_LOCK), |()| code::OK)
    })
}

unsafe extern "C" fn x_unlock(file: *mut SqliteFile, level: c_int) -> c_int {
    let unlock = |connection: &mut Connection| match level {
        code::LOCK_NONE => connection.end(),
        _ => connection.end_write(),
    };
    let mut done = false;
    // SAFETY: SQLite passes an open file of ours.
    guarded(code::OK, || unsafe {
        opened(file).with(|connection, _| unlock(connection));
        done = true;
        code::OK
    });
    if !done {
        // SQLite takes it for unlocked whatever is returned: what is left of the transaction must not show in the next one.
        // SAFETY: as above.
        guarded(code::OK, || unsafe {
            unlock(&mut lock(&opened(file).connection));
            code::OK
        });
    }
    code::OK
}

unsafe extern "C" fn x_check_reserved_lock(file: *mut SqliteFile, held: *mut c_int) -> c_int {
    // SAFETY: SQLite passes an open file of ours and room for a number.
    guarded(code::IOERR_LOCK, || unsafe {
        *held = c_int::from(opened(file).with(|connection, _| connection.is_being_written()));
        code::OK
    })
}

unsafe extern "C" fn x_file_control(file: *mut SqliteFile, operation: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: SQLite passes an open file of ours, and what each operation's documentation says.
    guarded(code::ERROR, || unsafe {
        match operation {
            code::FCNTL_PDB => {
                (*(*file.cast::<File>()).open).db = argument.cast();
                code::OK
            }
            code::FCNTL_VFSNAME => {
                *argument.cast::<*mut c_char>() = opened(file).host.api.text(VFS_NAME);
                code::OK
            }
            code::FCNTL_SYNC => {
                let open = opened(file);
                let may = open.with(|connection, _| connection.may_commit());
                may.map_or_else(|error| open.failed(&error, code::IOERR_FSYNC), |()| code::OK)
            }
            code::FCNTL_COMMIT_PHASETWO => {
                let open = opened(file);
                let committed = open.with(|connection, _| connection.commit());
                committed.map_or_else(|error| open.failed(&error, code::IOERR_COMMIT), |()| code::OK)
            }
            code::FCNTL_PRAGMA => pragma(opened(file), argument.cast()),
            _ => code::NOTFOUND,
        }
    })
}

/// Answers a PRAGMA: `arguments` are a place for the answer, the name, and the value or null.
///
/// # Safety
/// As `SQLITE_FCNTL_PRAGMA` has it.
unsafe fn pragma(open: &Open, arguments: *mut *mut c_char) -> c_int {
    // SAFETY: as the caller promises.
    let (name, value) = unsafe {
        let text = |at: usize| {
            let text = *arguments.add(at);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        (text(1).unwrap_or_default(), text(2))
    };
    let (result, text) = match open.with(|connection, stop| connection.pragma(&name, value.as_deref(), stop)) {
        Pragma::NotOurs => return code::NOTFOUND,
        Pragma::Answer(text) => (code::OK, text),
        Pragma::Failed(Error::Interrupted) => return code::INTERRUPT,
        Pragma::Failed(error) => {
            tell(&error.to_string());
            (code::ERROR, error.to_string())
        }
    };
    // SAFETY: as the caller promises; SQLite frees the text.
    unsafe { *arguments = open.host.api.text(&text) };
    result
}

unsafe extern "C" fn x_sector_size(_: *mut SqliteFile) -> c_int {
    512
}

unsafe extern "C" fn x_device_characteristics(_: *mut SqliteFile) -> c_int {
    code::IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn x_delete(_: *mut Vfs, _: *const c_char, _: c_int) -> c_int {
    // There are no journals, so none is left.
    code::OK
}

unsafe extern "C" fn x_access(_: *mut Vfs, _: *const c_char, _: c_int, result: *mut c_int) -> c_int {
    // A journal or WAL on the host's disk would belong to another database.
    // SAFETY: SQLite passes room for a number.
    unsafe { *result = 0 };
    code::OK
}

unsafe extern "C" fn x_full_pathname(vfs: *mut Vfs, name: *const c_char, room: c_int, into: *mut c_char) -> c_int {
    // SAFETY: SQLite passes the name of a main database, fit for `sqlite3_uri_parameter`, and room for `room` bytes.
    guarded(code::CANTOPEN, || unsafe {
        let api = &host_of(vfs).api;
        let mut full = CStr::from_ptr(name).to_bytes().to_vec();
        if api.uri_parameter(name, c"cache").is_none_or(|cache| cache != "private") {
            // Connections with one full name share one cache, where a URI, a flag or the whole process says so, whatever else differs.
            let others = [c"replica_url", c"at"].map(|key| api.uri_parameter(name, key));
            full.extend_from_slice(shared_suffix(&others).as_bytes());
        }
        full.push(0);
        let name = full;
        if usize::try_from(room).is_ok_and(|room| name.len() <= room) {
            into.copy_from_nonoverlapping(name.as_ptr().cast(), name.len());
            code::OK
        } else {
            code::CANTOPEN
        }
    })
}

// SQLite calls these without asking whether they are there, for extensions that are loaded into a connection of ours:
// go-sqlite3 loads its own into each one.

unsafe extern "C" fn x_dl_open(vfs: *mut Vfs, path: *const c_char) -> *mut c_void {
    // SAFETY: passed on as it came, with the VFS that it is for.
    unsafe {
        let default = host_of(vfs).default;
        (*default).dl_open.map_or(std::ptr::null_mut(), |dl_open| dl_open(default, path))
    }
}

unsafe extern "C" fn x_dl_error(vfs: *mut Vfs, room: c_int, into: *mut c_char) {
    // SAFETY: passed on as it came, with the VFS that it is for. Without it, SQLite's own text stays.
    unsafe {
        let default = host_of(vfs).default;
        if let Some(dl_error) = (*default).dl_error {
            dl_error(default, room, into);
        }
    }
}

unsafe extern "C" fn x_dl_sym(vfs: *mut Vfs, library: *mut c_void, name: *const c_char) -> Option<Symbol> {
    // SAFETY: passed on as it came, with the VFS that it is for; the library is from `x_dl_open`, so from there.
    unsafe {
        let default = host_of(vfs).default;
        (*default).dl_sym.and_then(|dl_sym| dl_sym(default, library, name))
    }
}

unsafe extern "C" fn x_dl_close(vfs: *mut Vfs, library: *mut c_void) {
    // SAFETY: passed on as it came, with the VFS that it is for; the library is from `x_dl_open`, so from there.
    unsafe {
        let default = host_of(vfs).default;
        if let Some(dl_close) = (*default).dl_close {
            dl_close(default, library);
        }
    }
}

/// What begins the part of a full name that tells databases with a shared cache apart.
const SHARED: &str = "@litestream-";

/// See [`SHARED`]. Empty where there is nothing to tell apart.
fn shared_suffix(others: &[Option<String>]) -> String {
    if others.iter().all(Option::is_none) {
        return String::new();
    }
    let mut hasher = std::hash::DefaultHasher::new();
    others.hash(&mut hasher);
    format!("{SHARED}{:016x}", hasher.finish())
}

unsafe extern "C" fn x_randomness(vfs: *mut Vfs, len: c_int, into: *mut c_char) -> c_int {
    // SAFETY: passed on as it came, with the VFS that it is for.
    unsafe {
        let default = host_of(vfs).default;
        ((*default).randomness)(default, len, into)
    }
}

unsafe extern "C" fn x_sleep(vfs: *mut Vfs, microseconds: c_int) -> c_int {
    // SAFETY: passed on as it came, with the VFS that it is for.
    unsafe {
        let default = host_of(vfs).default;
        ((*default).sleep)(default, microseconds)
    }
}

unsafe extern "C" fn x_current_time(vfs: *mut Vfs, time: *mut f64) -> c_int {
    // SAFETY: passed on as it came, with the VFS that it is for.
    unsafe {
        let default = host_of(vfs).default;
        ((*default).current_time)(default, time)
    }
}

unsafe extern "C" fn x_current_time_64(vfs: *mut Vfs, time: *mut i64) -> c_int {
    // SAFETY: passed on as it came, with the VFS that it is for. Old VFSes know only days as a fraction.
    unsafe {
        let default = host_of(vfs).default;
        if let Some(current_time_64) = (*default).current_time_64.filter(|_| (*default).version >= 2) {
            return current_time_64(default, time);
        }
        let mut days = 0.0;
        let result = ((*default).current_time)(default, &raw mut days);
        *time = (days * 86_400_000.0) as i64;
        result
    }
}

/// What a pointer leads to that was made by `Box::into_raw` and then left for ever, as [`process`] does.
pub(crate) fn leaked(pointer: *mut process::Process) -> Option<&'static process::Process> {
    // SAFETY: `process` publishes only such pointers, and takes none back.
    unsafe { pointer.as_ref() }
}

/// Takes back what was never published.
pub(crate) fn reclaim(pointer: *mut process::Process) -> process::Process {
    // SAFETY: `process` calls this with what `Box::into_raw` gave it and nobody else has seen.
    *unsafe { Box::from_raw(pointer) }
}
