//! SQLite's functions and structures, as far as a VFS needs them.
//!
//! No SQLite is linked: functions are taken from the host's table, `sqlite3_api_routines`, by their place in it. That table only ever grows at
//! its end, so a place is good for every host that is new enough; the places here are those of `sqlite3ext.h`.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

/// The oldest host that works: 3.31 has everything that is used here.
const OLDEST: c_int = 3_031_000;
/// The first one with `sqlite3_is_interrupted`.
const IS_INTERRUPTED: c_int = 3_041_000;

/// `sqlite3`, a connection.
#[repr(C)]
pub(crate) struct Sqlite {
    _opaque: [u8; 0],
}

/// `sqlite3_context`.
#[repr(C)]
pub(crate) struct Context {
    _opaque: [u8; 0],
}

/// `sqlite3_value`.
#[repr(C)]
pub(crate) struct Value {
    _opaque: [u8; 0],
}

/// `sqlite3_stmt`.
#[repr(C)]
pub(crate) struct Statement {
    _opaque: [u8; 0],
}

/// `sqlite3_file`.
#[repr(C)]
pub(crate) struct SqliteFile {
    pub(crate) methods: *const IoMethods,
}

/// `sqlite3_io_methods`, version 1: no shared memory, no memory mapping.
#[repr(C)]
pub(crate) struct IoMethods {
    pub(crate) version: c_int,
    pub(crate) close: unsafe extern "C" fn(*mut SqliteFile) -> c_int,
    pub(crate) read: unsafe extern "C" fn(*mut SqliteFile, *mut c_void, c_int, i64) -> c_int,
    pub(crate) write: unsafe extern "C" fn(*mut SqliteFile, *const c_void, c_int, i64) -> c_int,
    pub(crate) truncate: unsafe extern "C" fn(*mut SqliteFile, i64) -> c_int,
    pub(crate) sync: unsafe extern "C" fn(*mut SqliteFile, c_int) -> c_int,
    pub(crate) file_size: unsafe extern "C" fn(*mut SqliteFile, *mut i64) -> c_int,
    pub(crate) lock: unsafe extern "C" fn(*mut SqliteFile, c_int) -> c_int,
    pub(crate) unlock: unsafe extern "C" fn(*mut SqliteFile, c_int) -> c_int,
    pub(crate) check_reserved_lock: unsafe extern "C" fn(*mut SqliteFile, *mut c_int) -> c_int,
    pub(crate) file_control: unsafe extern "C" fn(*mut SqliteFile, c_int, *mut c_void) -> c_int,
    pub(crate) sector_size: unsafe extern "C" fn(*mut SqliteFile) -> c_int,
    pub(crate) device_characteristics: unsafe extern "C" fn(*mut SqliteFile) -> c_int,
}

pub(crate) type Symbol = unsafe extern "C" fn();
pub(crate) type DlSym = unsafe extern "C" fn(*mut Vfs, *mut c_void, *const c_char) -> Option<Symbol>;

/// `sqlite3_vfs`, version 2.
#[repr(C)]
pub(crate) struct Vfs {
    pub(crate) version: c_int,
    pub(crate) os_file: c_int,
    pub(crate) max_pathname: c_int,
    pub(crate) next: *mut Vfs,
    pub(crate) name: *const c_char,
    pub(crate) app_data: *mut c_void,
    pub(crate) open: unsafe extern "C" fn(*mut Vfs, *const c_char, *mut SqliteFile, c_int, *mut c_int) -> c_int,
    pub(crate) delete: unsafe extern "C" fn(*mut Vfs, *const c_char, c_int) -> c_int,
    pub(crate) access: unsafe extern "C" fn(*mut Vfs, *const c_char, c_int, *mut c_int) -> c_int,
    pub(crate) full_pathname: unsafe extern "C" fn(*mut Vfs, *const c_char, c_int, *mut c_char) -> c_int,
    pub(crate) dl_open: Option<unsafe extern "C" fn(*mut Vfs, *const c_char) -> *mut c_void>,
    pub(crate) dl_error: Option<unsafe extern "C" fn(*mut Vfs, c_int, *mut c_char)>,
    pub(crate) dl_sym: Option<DlSym>,
    pub(crate) dl_close: Option<unsafe extern "C" fn(*mut Vfs, *mut c_void)>,
    pub(crate) randomness: unsafe extern "C" fn(*mut Vfs, c_int, *mut c_char) -> c_int,
    pub(crate) sleep: unsafe extern "C" fn(*mut Vfs, c_int) -> c_int,
    pub(crate) current_time: unsafe extern "C" fn(*mut Vfs, *mut f64) -> c_int,
    pub(crate) last_error: Option<unsafe extern "C" fn(*mut Vfs, c_int, *mut c_char) -> c_int>,
    pub(crate) current_time_64: Option<unsafe extern "C" fn(*mut Vfs, *mut i64) -> c_int>,
}

pub(crate) type ScalarFunction = unsafe extern "C" fn(*mut Context, c_int, *mut *mut Value);
pub(crate) type EntryPoint = unsafe extern "C" fn(*mut Sqlite, *mut *mut c_char, *const c_void) -> c_int;

/// A result code or another number of SQLite's.
pub(crate) mod code {
    use std::ffi::c_int;

    pub(crate) const OK: c_int = 0;
    pub(crate) const ERROR: c_int = 1;
    pub(crate) const BUSY: c_int = 5;
    pub(crate) const READONLY: c_int = 8;
    pub(crate) const INTERRUPT: c_int = 9;
    pub(crate) const NOTFOUND: c_int = 12;
    pub(crate) const CANTOPEN: c_int = 14;
    pub(crate) const OK_LOAD_PERMANENTLY: c_int = 256;
    pub(crate) const IOERR_READ: c_int = 10 | (1 << 8);
    pub(crate) const IOERR_SHORT_READ: c_int = 10 | (2 << 8);
    pub(crate) const BUSY_SNAPSHOT: c_int = BUSY | (2 << 8);
    pub(crate) const IOERR_WRITE: c_int = 10 | (3 << 8);
    pub(crate) const IOERR_FSYNC: c_int = 10 | (4 << 8);
    pub(crate) const IOERR_TRUNCATE: c_int = 10 | (6 << 8);
    pub(crate) const IOERR_COMMIT: c_int = 10 | (30 << 8);
    pub(crate) const IOERR_FSTAT: c_int = 10 | (7 << 8);
    pub(crate) const IOERR_LOCK: c_int = 10 | (15 << 8);

    pub(crate) const OPEN_READONLY: c_int = 0x1;
    pub(crate) const OPEN_READWRITE: c_int = 0x2;
    pub(crate) const OPEN_MAIN_DB: c_int = 0x100;
    /// Of a main database, or of several that commit together.
    pub(crate) const OPEN_JOURNAL: c_int = 0x800 | 0x4000;
    pub(crate) const OPEN_TEMPORARY: c_int = 0x200 | 0x400 | 0x1000 | 0x2000;

    pub(crate) const LOCK_NONE: c_int = 0;
    pub(crate) const LOCK_SHARED: c_int = 1;

    pub(crate) const FCNTL_FILE_POINTER: c_int = 7;
    pub(crate) const FCNTL_SYNC: c_int = 21;
    pub(crate) const FCNTL_COMMIT_PHASETWO: c_int = 22;
    pub(crate) const FCNTL_VFSNAME: c_int = 12;
    pub(crate) const FCNTL_PRAGMA: c_int = 14;
    pub(crate) const FCNTL_PDB: c_int = 30;

    pub(crate) const IOCAP_POWERSAFE_OVERWRITE: c_int = 0x1000;

    pub(crate) const UTF8: c_int = 1;
    pub(crate) const DIRECTONLY: c_int = 0x80000;
    pub(crate) const NOTICE: c_int = 27;
}

type CreateFunction = unsafe extern "C" fn(
    *mut Sqlite,
    *const c_char,
    c_int,
    c_int,
    *mut c_void,
    Option<ScalarFunction>,
    *const c_void,
    *const c_void,
    *const c_void,
) -> c_int;
type Prepare =
    unsafe extern "C" fn(*mut Sqlite, *const c_char, c_int, *mut *mut Statement, *mut *const c_char) -> c_int;

/// The host's functions.
pub(crate) struct Api {
    malloc: unsafe extern "C" fn(c_int) -> *mut c_void,
    log: unsafe extern "C" fn(c_int, *const c_char, ...),
    uri_parameter: unsafe extern "C" fn(*const c_char, *const c_char) -> *const c_char,
    file_control: unsafe extern "C" fn(*mut Sqlite, *const c_char, c_int, *mut c_void) -> c_int,
    create_function: CreateFunction,
    result_text: unsafe extern "C" fn(*mut Context, *const c_char, c_int, isize),
    result_error: unsafe extern "C" fn(*mut Context, *const c_char, c_int),
    result_double: unsafe extern "C" fn(*mut Context, f64),
    value_text: unsafe extern "C" fn(*mut Value) -> *const c_char,
    context_db: unsafe extern "C" fn(*mut Context) -> *mut Sqlite,
    user_data: unsafe extern "C" fn(*mut Context) -> *mut c_void,
    vfs_find: unsafe extern "C" fn(*const c_char) -> *mut Vfs,
    vfs_register: unsafe extern "C" fn(*mut Vfs, c_int) -> c_int,
    auto_extension: unsafe extern "C" fn(Option<Symbol>) -> c_int,
    is_interrupted: Option<unsafe extern "C" fn(*mut Sqlite) -> c_int>,
    prepare: Prepare,
    step: unsafe extern "C" fn(*mut Statement) -> c_int,
    finalize: unsafe extern "C" fn(*mut Statement) -> c_int,
}

/// Reads the host's table.
///
/// # Errors
/// What is wrong with the host.
///
/// # Safety
/// `table` must be the host's `sqlite3_api_routines`.
pub(crate) unsafe fn read_table(table: *const c_void) -> Result<Api, String> {
    if table.is_null() {
        return Err("this SQLite was built without extension loading".to_owned());
    }
    /// The function at a place of the table.
    ///
    /// # Safety
    /// The host's table must reach that far, and hold a function of type `F` there.
    unsafe fn at<F: Copy>(table: *const c_void, place: usize) -> Result<F, String> {
        const { assert!(size_of::<F>() == size_of::<*const c_void>()) };
        // SAFETY: as the caller promises.
        let pointer = unsafe { table.cast::<*const c_void>().add(place).read() };
        if pointer.is_null() {
            return Err(format!("this SQLite lacks function {place} of its extension interface"));
        }
        // SAFETY: as the caller promises; a function's address is not null, which was just checked.
        Ok(unsafe { std::mem::transmute_copy::<*const c_void, F>(&pointer) })
    }
    // SAFETY: `sqlite3_libversion_number` stands in the table since the first version of it.
    let version = unsafe {
        let version: unsafe extern "C" fn() -> c_int = at(table, 67)?;
        version()
    };
    if version < OLDEST {
        return Err(format!("this SQLite is {}, and 3.31 is the oldest that works", version_text(version)));
    }
    // SAFETY: all places but the last one exist since 3.31 or before; the last one's version is checked.
    unsafe {
        Ok(Api {
            malloc: at(table, 68)?,
            log: at(table, 167)?,
            uri_parameter: at(table, 189)?,
            file_control: at(table, 127)?,
            create_function: at(table, 162)?,
            result_text: at(table, 85)?,
            result_error: at(table, 80)?,
            result_double: at(table, 79)?,
            value_text: at(table, 109)?,
            context_db: at(table, 149)?,
            user_data: at(table, 101)?,
            vfs_find: at(table, 141)?,
            vfs_register: at(table, 142)?,
            auto_extension: at(table, 192)?,
            is_interrupted: if version >= IS_INTERRUPTED { Some(at(table, 266)?) } else { None },
            prepare: at(table, 116)?,
            step: at(table, 94)?,
            finalize: at(table, 57)?,
        })
    }
}

fn version_text(version: c_int) -> String {
    format!("{}.{}.{}", version / 1_000_000, version / 1_000 % 1_000, version % 1_000)
}

impl Api {
    /// Text in memory of the host's, which frees it. Null where there is no memory.
    pub(crate) fn text(&self, text: &str) -> *mut c_char {
        let text = c_string(text);
        let bytes = text.as_bytes_with_nul();
        let Ok(len) = c_int::try_from(bytes.len()) else { return std::ptr::null_mut() };
        // SAFETY: any length may be asked for.
        let memory = unsafe { (self.malloc)(len) }.cast::<u8>();
        if !memory.is_null() {
            // SAFETY: that many bytes were just allocated, and nobody else knows of them.
            unsafe { memory.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
        memory.cast()
    }

    /// Writes to the host's error log.
    pub(crate) fn log(&self, text: &str) {
        let text = c_string(text);
        // SAFETY: the format takes one string. `%` in the text means nothing.
        unsafe { (self.log)(code::NOTICE, c"litestream: %s".as_ptr(), text.as_ptr()) };
    }

    /// A parameter of the name that `xOpen` was called with.
    ///
    /// # Safety
    /// `name` must be null or such a name, of a main database.
    pub(crate) unsafe fn uri_parameter(&self, name: *const c_char, key: &CStr) -> Option<String> {
        if name.is_null() {
            return None;
        }
        // SAFETY: as the caller promises.
        let value = unsafe { (self.uri_parameter)(name, key.as_ptr()) };
        // SAFETY: what SQLite returns is null or ends with a zero.
        (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
    }

    /// The file of a schema.
    ///
    /// # Safety
    /// `db` must be an open connection.
    pub(crate) unsafe fn file(&self, db: *mut Sqlite, schema: &str) -> *mut SqliteFile {
        let mut file: *mut SqliteFile = std::ptr::null_mut();
        let schema = c_string(schema);
        // SAFETY: as the caller promises; this file control stores a pointer where its argument points.
        let result =
            unsafe { (self.file_control)(db, schema.as_ptr(), code::FCNTL_FILE_POINTER, (&raw mut file).cast()) };
        if result == code::OK { file } else { std::ptr::null_mut() }
    }

    /// Defines a function.
    ///
    /// # Safety
    /// `db` must be an open connection, and `data` stay valid as long as it.
    pub(crate) unsafe fn create_function(
        &self,
        db: *mut Sqlite,
        name: &CStr,
        arguments: c_int,
        flags: c_int,
        data: *mut c_void,
        function: ScalarFunction,
    ) -> c_int {
        let none = std::ptr::null();
        // SAFETY: as the caller promises.
        unsafe {
            (self.create_function)(
                db,
                name.as_ptr(),
                arguments,
                code::UTF8 | flags,
                data,
                Some(function),
                none,
                none,
                none,
            )
        }
    }

    /// # Safety
    /// In a function's call, with its context.
    pub(crate) unsafe fn result_text(&self, context: *mut Context, text: &str) {
        /// `SQLITE_TRANSIENT`: SQLite takes a copy.
        const TRANSIENT: isize = -1;
        let text = c_string(text);
        let len = c_int::try_from(text.as_bytes().len()).unwrap_or(c_int::MAX);
        // SAFETY: as the caller promises.
        unsafe { (self.result_text)(context, text.as_ptr(), len, TRANSIENT) }
    }

    /// # Safety
    /// In a function's call, with its context.
    pub(crate) unsafe fn result_error(&self, context: *mut Context, text: &str) {
        // SAFETY: as the caller promises; SQLite copies the text.
        unsafe { (self.result_error)(context, c_string(text).as_ptr(), -1) }
    }

    /// # Safety
    /// In a function's call, with its context.
    pub(crate) unsafe fn result_double(&self, context: *mut Context, number: f64) {
        // SAFETY: as the caller promises.
        unsafe { (self.result_double)(context, number) }
    }

    /// # Safety
    /// `value` must be an argument of the function's call that is going on.
    pub(crate) unsafe fn value_text(&self, value: *mut Value) -> Option<String> {
        // SAFETY: as the caller promises.
        let text = unsafe { (self.value_text)(value) };
        // SAFETY: what SQLite returns is null or ends with a zero.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }

    /// # Safety
    /// In a function's call, with its context.
    pub(crate) unsafe fn context(&self, context: *mut Context) -> (*mut Sqlite, *mut c_void) {
        // SAFETY: as the caller promises.
        unsafe { ((self.context_db)(context), (self.user_data)(context)) }
    }

    /// The host's default VFS.
    pub(crate) fn default_vfs(&self) -> *mut Vfs {
        // SAFETY: null asks for the default.
        unsafe { (self.vfs_find)(std::ptr::null()) }
    }

    /// # Safety
    /// `vfs` must live for ever.
    pub(crate) unsafe fn register_vfs(&self, vfs: *mut Vfs) -> c_int {
        // SAFETY: as the caller promises.
        unsafe { (self.vfs_register)(vfs, 0) }
    }

    /// Has SQLite call `entry` for every new connection.
    pub(crate) fn auto_extension(&self, entry: EntryPoint) -> c_int {
        // SAFETY: SQLite takes the address of an entry point as that of a function without arguments, and calls it with three.
        unsafe { (self.auto_extension)(Some(std::mem::transmute::<EntryPoint, Symbol>(entry))) }
    }

    /// Notices when the connection is told to stop.
    ///
    /// # Safety
    /// `db` must be null, or the connection on whose behalf this thread runs, and stay open as long as what is returned.
    pub(crate) unsafe fn interrupts(&self, db: *mut Sqlite) -> Interrupts<'_> {
        Interrupts { api: self, db, active: Cell::new(std::ptr::null_mut()) }
    }
}

/// Notices when a connection is told to stop.
///
/// Before 3.41 SQLite does not say so, except by ending whatever statement is stepped next; and it forgets where no statement is active
/// when one begins, which is so while one is prepared. So there, from the first question on, a statement of our own is kept active.
pub(crate) struct Interrupts<'a> {
    api: &'a Api,
    db: *mut Sqlite,
    active: Cell<*mut Statement>,
}

impl Interrupts<'_> {
    /// Whether the connection was told to stop: since the first question, or in a statement that was active before.
    pub(crate) fn any(&self) -> bool {
        if self.db.is_null() {
            return false;
        }
        if let Some(is_interrupted) = self.api.is_interrupted {
            // SAFETY: as was promised for `db`.
            return unsafe { is_interrupted(self.db) } != 0;
        }
        if self.active.get().is_null() {
            let (statement, stepped) = self.begin(c"SELECT 1 UNION ALL SELECT 2");
            self.active.set(statement);
            if stepped == code::INTERRUPT {
                return true;
            }
        }
        let (statement, stepped) = self.begin(c"SELECT 1");
        self.end(statement);
        stepped == code::INTERRUPT
    }

    /// Steps a new statement once, and returns it and what came of it.
    fn begin(&self, sql: &CStr) -> (*mut Statement, c_int) {
        let mut statement = std::ptr::null_mut();
        // SAFETY: as was promised for `db`; only a statement that was prepared is stepped.
        unsafe {
            let prepared = (self.api.prepare)(self.db, sql.as_ptr(), -1, &raw mut statement, std::ptr::null_mut());
            let stepped = if prepared == code::OK { (self.api.step)(statement) } else { prepared };
            (statement, stepped)
        }
    }

    fn end(&self, statement: *mut Statement) {
        // SAFETY: the statement is null or comes from `begin`, and nobody uses it again.
        unsafe { (self.api.finalize)(statement) };
    }
}

impl Drop for Interrupts<'_> {
    fn drop(&mut self) {
        if !self.active.get().is_null() {
            self.end(self.active.get());
        }
    }
}

/// Text as C takes it; a zero inside ends it.
pub(crate) fn c_string(text: &str) -> CString {
    let bytes: Vec<u8> = text.bytes().take_while(|byte| *byte != 0).collect();
    CString::new(bytes).unwrap_or_default()
}
