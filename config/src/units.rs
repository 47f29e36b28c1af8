//! Durations and sizes as people write them in options and configuration files.
//!
//! Durations are Go's (`1h30m`, `1.5h`, `500ms`) plus days and weeks, and the words of humantime (`2 hours 5min`).
//! A number without a unit is refused: in Litestream `sync-interval: 5` silently means five *nano*seconds.

use std::time::Duration;

/// Why a text is not a duration or a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

const SECOND: u128 = 1_000_000_000;
const MINUTE: u128 = 60 * SECOND;
const HOUR: u128 = 60 * MINUTE;
const DAY: u128 = 24 * HOUR;

/// Parses a duration. Exact to the nanosecond; what is finer is cut off.
///
/// # Errors
/// Anything else: nothing, a number without a unit (but `0` is fine), a negative or an uncountable duration, and `M`,
/// which is a month to some and a minute to others.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let wrong = |why: &str| UnitError(format!("`{text}` is not a duration: {why}"));
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong("it is empty; write one like 30s, 1h30m or 7d"));
    }
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.starts_with('-') {
        return Err(wrong("it is negative"));
    }
    rest = rest.strip_prefix('+').unwrap_or(rest);
    let mut total = 0_u128;
    while !rest.is_empty() {
        let (number, after) = split(rest, |c| c.is_ascii_digit() || c == '.');
        let (unit, after) = split(after.trim_start(), |c| c.is_alphabetic());
        if unit.is_empty() && after.is_empty() && !number.is_empty() {
            return Err(wrong(&format!("`{number}` has no unit; write {number}s, {number}m, {number}h or {number}d")));
        }
        let unit = nanoseconds(unit).map_err(|why| wrong(&why))?;
        let part = scale(number, unit).ok_or_else(|| wrong("write numbers with units, like 30s, 1h30m or 7d"))?;
        total = total.checked_add(part).ok_or_else(|| wrong("it is too long"))?;
        rest = after.trim_start();
    }
    let seconds = u64::try_from(total / SECOND).map_err(|_| wrong("it is too long"))?;
    // Go's durations, and many an addition to a point in time, end at 292 years.
    if seconds > i64::MAX as u64 / 1_000_000_000 {
        return Err(wrong("it is longer than 292 years"));
    }
    Ok(Duration::new(seconds, u32::try_from(total % SECOND).unwrap_or_default()))
}

/// Parses a size in bytes: `64MiB`, `5MB` or a plain number.
///
/// # Errors
/// Anything else.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    litestream_storage::config::parse_size(text).map_err(UnitError)
}

/// Writes a duration the way [`parse_duration`] reads it and people like it: `1h30m`, `500ms`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = duration.as_nanos();
    let mut text = String::new();
    let units = [(DAY, "d"), (HOUR, "h"), (MINUTE, "m"), (SECOND, "s"), (1_000_000, "ms"), (1_000, "µs"), (1, "ns")];
    for (unit, name) in units {
        if rest >= unit {
            text.push_str(&format!("{}{name}", rest / unit));
            rest %= unit;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

fn nanoseconds(unit: &str) -> Result<u128, String> {
    Ok(match unit {
        "ns" | "nsec" | "nanos" | "nanosecond" | "nanoseconds" => 1,
        // Both of Unicode's micro signs.
        "us" | "µs" | "μs" | "usec" | "micros" | "microsecond" | "microseconds" => 1_000,
        "ms" | "msec" | "millis" | "millisecond" | "milliseconds" => 1_000_000,
        "s" | "sec" | "secs" | "second" | "seconds" => SECOND,
        "m" | "min" | "mins" | "minute" | "minutes" => MINUTE,
        "h" | "hr" | "hrs" | "hour" | "hours" => HOUR,
        "d" | "day" | "days" => DAY,
        "w" | "wk" | "week" | "weeks" => 7 * DAY,
        "M" => return Err("`M` may be months or minutes; write minutes as m, months as days, like 90d".into()),
        "month" | "months" | "y" | "yr" | "year" | "years" => {
            return Err(format!("`{unit}` has no fixed length; write days, like 90d or 365d"));
        }
        "" => return Err("write numbers with units, like 30s, 1h30m or 7d".into()),
        _ => return Err(format!("`{unit}` is not a unit; there are ns, us, ms, s, m, h, d and w")),
    })
}

/// `number × unit`, in whole numbers throughout: floating point would turn 0.3s into 299999999ns.
fn scale(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
    // Eighteen digits reach below the nanosecond of a week, and keep the product far from the end of 128 bits.
    let digits = &fraction[..fraction.len().min(18)];
    let fraction = if digits.is_empty() { 0 } else { digits.parse::<u64>().ok()? };
    let part = u128::from(fraction) * unit / 10_u128.pow(u32::try_from(digits.len()).ok()?);
    u128::from(whole).checked_mul(unit)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let nanos = Duration::from_nanos;
        let secs = Duration::from_secs;
        for (text, expected) in [
            ("0", secs(0)),
            ("0s", secs(0)),
            ("1s", secs(1)),
            ("500ms", Duration::from_millis(500)),
            ("1h30m", secs(5400)),
            ("1h 30m", secs(5400)),
            ("1.5h", secs(5400)),
            (".5s", Duration::from_millis(500)),
            ("2.s", secs(2)),
            ("0.3s", Duration::from_millis(300)),
            ("0.1234567891s", nanos(123_456_789)),
            ("1h0m0.5s", secs(3600) + Duration::from_millis(500)),
            ("+5m", secs(300)),
            ("7d", secs(7 * 86400)),
            ("1d12h", secs(36 * 3600)),
            ("2w", secs(14 * 86400)),
            ("100us", nanos(100_000)),
            ("100µs", nanos(100_000)),
            ("100μs", nanos(100_000)),
            ("3ns", nanos(3)),
            ("2 hours 5min", secs(7500)),
            ("15days 2min 2s", secs(15 * 86400 + 122)),
            (" 1 day ", secs(86400)),
            ("106751d", secs(106_751 * 86400)),
        ] {
            assert_eq!(parse_duration(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration() {
        for (text, part) in [
            ("", "is empty"),
            ("  ", "is empty"),
            ("5", "has no unit; write 5s, 5m, 5h or 5d"),
            ("1h30", "`30` has no unit"),
            ("-1s", "is negative"),
            ("s", "30s"),
            (".s", "30s"),
            ("1..5s", "30s"),
            ("1.5.5s", "30s"),
            ("1h-5m", "30s"),
            ("1,5h", "30s"),
            ("1e3s", "`e` is not a unit"),
            ("5 parsecs", "`parsecs` is not a unit"),
            ("30M", "months or minutes"),
            ("1month", "no fixed length"),
            ("1y", "no fixed length"),
            ("1H", "`H` is not a unit"),
            ("99999999999999999999s", "30s"),
            ("18446744073709551615w", "too long"),
            ("300000d", "292 years"),
            ("inf", "`inf` is not a unit"),
            ("12:30", "30s"),
        ] {
            let error = parse_duration(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn durations_are_written_as_they_are_read() {
        for (duration, text) in [
            (Duration::ZERO, "0s"),
            (Duration::from_secs(30), "30s"),
            (Duration::from_secs(5400), "1h30m"),
            (Duration::from_secs(86400), "1d"),
            (Duration::from_millis(1500), "1s500ms"),
            (Duration::from_nanos(1_001), "1µs1ns"),
        ] {
            assert_eq!(format_duration(duration), text);
            assert_eq!(parse_duration(text), Ok(duration));
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("123"), Ok(123));
        assert!(parse_size("much").unwrap_err().to_string().contains("64MiB"));
    }
}
