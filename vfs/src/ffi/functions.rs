//! SQL functions: `litestream_txid()`, `litestream_time()`, `litestream_lag()`, `litestream_set_time(x)`, `litestream_error()`.
//!
//! Each asks the main schema, or the one that its first argument names. They do what the PRAGMAs of the same names do.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::api::{Context, ScalarFunction, Sqlite, Value, code};
use super::{HOSTS, Host, MAX_HOSTS, METHODS, lock, opened, panicked, tell};
use crate::connection::Pragma;
use crate::process;

struct Function {
    name: &'static std::ffi::CStr,
    pragma: &'static str,
    /// How many arguments, with the schema and without.
    arguments: [c_int; 2],
    flags: c_int,
}

static FUNCTIONS: [Function; 5] = [
    Function { name: c"litestream_txid", pragma: "litestream_txid", arguments: [0, 1], flags: 0 },
    Function { name: c"litestream_time", pragma: "litestream_time", arguments: [0, 1], flags: 0 },
    Function { name: c"litestream_lag", pragma: "litestream_lag", arguments: [0, 1], flags: 0 },
    Function { name: c"litestream_set_time", pragma: "litestream_time", arguments: [1, 2], flags: code::DIRECTONLY },
    Function { name: c"litestream_error", pragma: "litestream_error", arguments: [0, 0], flags: 0 },
];

/// Defines the functions on a connection. Where that fails, the connection is none the worse for it, and there are still the PRAGMAs.
///
/// # Safety
/// `db` must be an open connection of the host's.
pub(super) unsafe fn define(host: &'static Host, db: *mut Sqlite) {
    let Some(call) = CALLS.get(host.number).copied() else { return };
    for function in &FUNCTIONS {
        let data: *const Function = function;
        for arguments in function.arguments {
            // SAFETY: as the caller promises; the data is static.
            let result = unsafe {
                let data: *mut c_void = data.cast_mut().cast();
                host.api.create_function(db, function.name, arguments, function.flags, data, call)
            };
            if result != code::OK {
                tracing::debug!(name = ?function.name, result, "cannot define a function");
            }
        }
    }
}

/// One for each host: a call does not say where it comes from, and only the host it comes from may be asked about it.
static CALLS: [ScalarFunction; MAX_HOSTS] =
    [call::<0>, call::<1>, call::<2>, call::<3>, call::<4>, call::<5>, call::<6>, call::<7>];

unsafe extern "C" fn call<const HOST: usize>(context: *mut Context, count: c_int, values: *mut *mut Value) {
    let host = lock(&HOSTS).get(HOST).copied();
    let Some(host) = host else { return };
    let answered = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: SQLite passes a context of its own and so many arguments; this function was defined with that host only.
        unsafe { answer(host, context, usize::try_from(count).unwrap_or(0), values) };
    }));
    if let Err(panic) = answered {
        let text = panicked(&*panic);
        tell(&text);
        // SAFETY: this is the function's call still, with its context.
        unsafe { host.api.result_error(context, &text) };
    }
}

/// # Safety
/// In a function's call, with its context and arguments.
unsafe fn answer(host: &Host, context: *mut Context, count: usize, values: *mut *mut Value) {
    // SAFETY: as the caller promises. The data is what `define` passed.
    unsafe {
        let api = &host.api;
        let (db, data) = api.context(context);
        let function = &*data.cast::<Function>();
        if function.pragma == "litestream_error" {
            return api.result_text(context, &process::last_error());
        }
        let texts: Vec<_> = (0..count).map(|at| api.value_text(*values.add(at)).unwrap_or_default()).collect();
        let sets = function.arguments[0] == 1;
        let (schema, value) = match texts.as_slice() {
            [schema, value] => (schema.as_str(), Some(value.as_str())),
            [one] if sets => ("main", Some(one.as_str())),
            [one] => (one.as_str(), None),
            _ => ("main", None),
        };
        let file = api.file(db, schema);
        if file.is_null() || !std::ptr::eq((*file).methods, &raw const METHODS) {
            let name = function.name.to_string_lossy();
            let text = format!(
                "{name}: the schema {schema} is no litestream database: open one with file:NAME?vfs=litestream, or name its schema"
            );
            return api.result_error(context, &text);
        }
        let open = opened(file);
        match open.with_db(db, |connection, stop| connection.pragma(function.pragma, value, stop)) {
            Pragma::Answer(text) if function.pragma == "litestream_lag" => {
                api.result_double(context, text.parse().unwrap_or(-1.0));
            }
            Pragma::Answer(text) => api.result_text(context, &text),
            Pragma::Failed(error) => {
                tell(&error.to_string());
                api.result_error(context, &error.to_string());
            }
            Pragma::NotOurs => api.result_error(context, "unknown function"),
        }
    }
}
