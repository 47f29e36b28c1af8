//! Points in time as people write them for `--timestamp`.
//!
//! A restore to a silently misread time is worse than an error, so every form is parsed whole or refused: a time with a
//! stated zone, a span before now, or one of a few words. Nothing is guessed, nothing is taken from the middle of a text,
//! and nothing lies after now. (Four general parsers were tried: they took `2 hours 30 minutes ago` for the future, `12`
//! for the year 12, an empty text for now.)

use jiff::{
    Span, Timestamp, Unit, Zoned, civil,
    fmt::{friendly::SpanParser, temporal},
    tz::TimeZone,
};

/// Why a text is not a time to restore to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WhenError {
    /// Nothing was written.
    #[error("the time is empty: {FORMS}")]
    Empty,
    /// No form fits.
    #[error("`{text}` is not a time{why}: {FORMS}")]
    Unknown {
        /// What was written.
        text: String,
        /// What is wrong with it, beginning with a colon or comma; may be empty.
        why: String,
    },
    /// A date, or a date and time, without a zone.
    #[error("`{text}` has no time zone: write {utc} for UTC, or {local} for the local time of this machine")]
    NoZone {
        /// What was written.
        text: String,
        /// The same in UTC.
        utc: String,
        /// The same in the local zone.
        local: String,
    },
    /// A local time that the zone skips or has twice.
    #[error(
        "`{text}` does not exist or exists twice in {zone}, whose clocks change then: write an offset, like +02:00"
    )]
    Ambiguous {
        /// What was written.
        text: String,
        /// The zone.
        zone: String,
    },
    /// A time after now.
    #[error("`{text}` is {time}, and now is only {now}: a time to go back to must lie in the past")]
    Future {
        /// What was written.
        text: String,
        /// How it was understood.
        time: String,
        /// Now.
        now: String,
    },
}

const FORMS: &str = "write one like 2026-01-31T12:00:00Z, `2026-01-31 12:00 Europe/Berlin`, `5 minutes ago`, -1h30m, \
                     now, today, `yesterday 14:30` or `last monday`";

/// Understands a time, seen from `now` and its zone, as milliseconds since 1970.
///
/// Replicas keep whole milliseconds and a time selects what lies *strictly before* it, so fractions of one are rounded up.
///
/// - RFC 3339, or any date with an optional time and a stated zone: `Z`, `UTC`, an offset, a name like `Europe/Berlin`;
/// - a span before now: `5 minutes ago`, `2 hours 30 minutes ago`, `1h30m ago`, `-1h30m`; days and longer are calendar
///   days, in the zone of `now`;
/// - `now`, `today`, `yesterday`, `last monday`…, each but the first with an optional `HH:MM[:SS]` (midnight when left
///   out) and an optional zone (that of `now` when left out).
///
/// # Errors
/// Everything else, and every time after `now`.
pub fn parse(text: &str, now: &Zoned) -> Result<i64, WhenError> {
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Err(WhenError::Empty);
    }
    let words: Vec<&str> = trimmed.split_whitespace().collect();
    let time = if is_date(trimmed) {
        absolute(trimmed, &words, now)?
    } else if trimmed.starts_with('-') || words.last().is_some_and(|word| word.eq_ignore_ascii_case("ago")) {
        before(trimmed, &words, now)?
    } else {
        named(trimmed, &words, now)?
    };
    if time > now.timestamp() {
        let shown = |time: Timestamp| time.round(Unit::Millisecond).unwrap_or(time).to_string();
        return Err(WhenError::Future { text: trimmed.into(), time: shown(time), now: shown(now.timestamp()) });
    }
    Ok(milliseconds(time))
}

/// Rounds up: with files at whole milliseconds, all before 12.0003 are all before 13.
fn milliseconds(time: Timestamp) -> i64 {
    let floor = time.as_nanosecond().div_euclid(1_000_000);
    let up = i128::from(time.as_nanosecond().rem_euclid(1_000_000) != 0);
    // A timestamp spans years -9999 to 9999, which is far within 64 bits of milliseconds.
    i64::try_from(floor + up).unwrap_or(i64::MAX)
}

fn unknown(text: &str, why: impl std::fmt::Display) -> WhenError {
    WhenError::Unknown { text: text.into(), why: why.to_string() }
}

/// Whether the text begins like `2026-01-31`, and so is meant as a date.
fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    let digits =
        |range: std::ops::Range<usize>| bytes.get(range).is_some_and(|part| part.iter().all(u8::is_ascii_digit));
    digits(0..4) && bytes.get(4) == Some(&b'-') && digits(5..7) && bytes.get(7) == Some(&b'-') && digits(8..10)
}

/// A date, an optional time and a zone.
fn absolute(text: &str, words: &[&str], now: &Zoned) -> Result<Timestamp, WhenError> {
    if text.contains('[') {
        return text
            .parse::<Zoned>()
            .map(|zoned| zoned.timestamp())
            .map_err(|error| unknown(text, format!(" ({error})")));
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Some((zone, rest)) = words.split_last().filter(|(_, rest)| !rest.is_empty())
        && let Some(zone) = time_zone(zone)
    {
        return match civil_time(&rest.join(" ")) {
            Some(time) => in_zone(text, time, &zone),
            None => Err(unknown(text, "")),
        };
    }
    // `2026-01-31Z` has a zone but no time.
    if let Some((date, zone)) = text.split_at_checked(10)
        && let (Ok(date), Some(zone)) = (date.parse::<civil::Date>(), time_zone(zone))
    {
        return in_zone(text, date.at(0, 0, 0, 0), &zone);
    }
    match civil_time(text) {
        Some(time) => {
            let zone = now.time_zone();
            let local = match zone.to_ambiguous_zoned(time).unambiguous() {
                Ok(zoned) => {
                    temporal::DateTimePrinter::new().timestamp_with_offset_to_string(&zoned.timestamp(), zoned.offset())
                }
                Err(_) => format!("{time}+HH:MM"),
            };
            Err(WhenError::NoZone { text: text.into(), utc: format!("{time}Z"), local })
        }
        None => Err(unknown(
            text,
            match text.parse::<civil::DateTime>() {
                Err(error) => format!(" ({error})"),
                Ok(_) => String::new(),
            },
        )),
    }
}

/// `2026-01-31`, `2026-01-31T12:00`, `2026-01-31 12:00:00.5`, and nothing that has a zone.
fn civil_time(text: &str) -> Option<civil::DateTime> {
    let (date, time) = match text.split_once(['T', 't', ' ']) {
        Some((date, time)) => (date, clock(time)?),
        None => (text, civil::Time::midnight()),
    };
    Some(date.parse::<civil::Date>().ok()?.to_datetime(time))
}

/// `HH:MM`, `HH:MM:SS`, `HH:MM:SS.FRACTION`.
fn clock(text: &str) -> Option<civil::Time> {
    let bytes = text.as_bytes();
    let shaped = bytes.len() >= 5
        && bytes[2] == b':'
        && bytes.iter().all(|byte| byte.is_ascii_digit() || matches!(byte, b':' | b'.'))
        && (bytes.len() == 5 || bytes[5] == b':');
    if shaped { text.parse().ok() } else { None }
}

/// `Z`, `UTC`, `GMT`, `+02:00`, `-0430`, `Europe/Berlin`. Abbreviations like `CET` or `EST`, which name several zones or
/// only half of one, are left out.
fn time_zone(text: &str) -> Option<TimeZone> {
    if ["z", "utc", "gmt"].contains(&text.to_ascii_lowercase().as_str()) {
        return Some(TimeZone::UTC);
    }
    if text.starts_with(['+', '-']) {
        let digits: String = text[1..].chars().filter(|c| *c != ':').collect();
        let colon = text.find(':').is_none_or(|at| at == 3);
        if digits.len() != 4 || !colon || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let (hours, minutes) = (digits[..2].parse::<i32>().ok()?, digits[2..].parse::<i32>().ok()?);
        let sign = if text.starts_with('-') { -1 } else { 1 };
        if minutes > 59 {
            return None;
        }
        let offset = jiff::tz::Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()?;
        return Some(TimeZone::fixed(offset));
    }
    if text.contains('/') { TimeZone::get(text).ok() } else { None }
}

fn in_zone(text: &str, time: civil::DateTime, zone: &TimeZone) -> Result<Timestamp, WhenError> {
    zone.to_ambiguous_zoned(time).unambiguous().map(|zoned| zoned.timestamp()).map_err(|_| WhenError::Ambiguous {
        text: text.into(),
        zone: zone.iana_name().unwrap_or("the local time zone").into(),
    })
}

/// `5 minutes ago` and `-5m`.
fn before(text: &str, words: &[&str], now: &Zoned) -> Result<Timestamp, WhenError> {
    let lower = text.to_ascii_lowercase();
    let ago = words.last().is_some_and(|word| word.eq_ignore_ascii_case("ago"));
    let minus = lower.starts_with('-');
    let body = match (ago, minus) {
        (true, true) => return Err(unknown(text, ", it goes back twice: leave out the minus or `ago`")),
        (true, false) => lower.strip_suffix("ago").unwrap_or_default().trim_end(),
        _ => lower.strip_prefix('-').unwrap_or_default().trim_start(),
    };
    // `1M` is a month to some and a minute to others.
    let alone = |at: usize| {
        let letter = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphabetic);
        !letter(text.as_bytes().get(at + 1)) && !letter(at.checked_sub(1).and_then(|at| text.as_bytes().get(at)))
    };
    if text.match_indices('M').any(|(at, _)| alone(at)) {
        return Err(unknown(text, ", `M` may be months or minutes"));
    }
    let article = ["a ", "an ", "one "].iter().find_map(|article| body.strip_prefix(article));
    let body = article.map_or(body.to_owned(), |rest| format!("1 {rest}"));
    // Only a number first: the parser would take signs, `P1D` and a further `ago` too.
    if !body.starts_with(|c: char| c.is_ascii_digit()) || body.ends_with("ago") {
        return Err(unknown(text, ""));
    }
    let body = body.replace(" and ", " ");
    let span: Span = SpanParser::new().parse_span(&body).map_err(|error| unknown(text, format!(" ({error})")))?;
    let earlier = now.checked_sub(span).map_err(|_| unknown(text, ", it is before the year -9999"))?;
    Ok(earlier.timestamp())
}

/// `now`, `today 9:30`, `yesterday at 14:30 UTC`, `last monday`.
fn named(text: &str, words: &[&str], now: &Zoned) -> Result<Timestamp, WhenError> {
    let lower: Vec<String> = words.iter().map(|word| word.to_ascii_lowercase()).collect();
    let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
    if lower == ["now"] {
        return Ok(now.timestamp());
    }
    let (day, rest) = match lower.as_slice() {
        ["today", ..] => (Day::Back(0), 1),
        ["yesterday", ..] => (Day::Back(1), 1),
        ["last", name, ..] => match weekday(name) {
            Some(day) => (Day::Last(day), 2),
            None => return Err(unknown(text, ", `last` wants a day of the week")),
        },
        [name, ..] if weekday(name).is_some() => {
            return Err(unknown(text, format!(", write `last {name}` for the one that has been")));
        }
        [time, ..] if clock(time).is_some() => {
            return Err(unknown(text, format!(", write `today {time}` or `yesterday {time}`")));
        }
        _ => return Err(unknown(text, "")),
    };
    // The words as written, as the names of zones are.
    let mut rest = &words[rest..];
    if let ["at", after @ ..] = rest
        && !after.is_empty()
    {
        rest = after;
    }
    let mut time = None;
    if let [first, after @ ..] = rest
        && let Some(parsed) = clock(first).or_else(|| clock(&format!("0{first}")))
    {
        (time, rest) = (Some(parsed), after);
    }
    let zone = match rest {
        [] => now.time_zone().clone(),
        [zone] => {
            time_zone(zone).ok_or_else(|| unknown(text, format!(", `{zone}` is neither HH:MM nor a time zone")))?
        }
        _ => return Err(unknown(text, "")),
    };
    let today = now.timestamp().to_zoned(zone.clone()).date();
    let back = match day {
        Day::Back(days) => days,
        // Always before today: on a Monday, `last monday` was a week ago.
        Day::Last(day) => i64::from(today.weekday().since(day)) + if today.weekday() == day { 7 } else { 0 },
    };
    let date = today.checked_sub(Span::new().days(back)).map_err(|_| unknown(text, ""))?;
    match time {
        Some(time) => in_zone(text, date.to_datetime(time), &zone),
        // Where clocks skip midnight, the day begins when the next hour does.
        None => {
            date.to_zoned(zone).map(|zoned| zoned.timestamp()).map_err(|error| unknown(text, format!(" ({error})")))
        }
    }
}

enum Day {
    Back(i64),
    Last(civil::Weekday),
}

fn weekday(name: &str) -> Option<civil::Weekday> {
    use civil::Weekday::{Friday, Monday, Saturday, Sunday, Thursday, Tuesday, Wednesday};
    Some(match name {
        "monday" | "mon" => Monday,
        "tuesday" | "tue" => Tuesday,
        "wednesday" | "wed" => Wednesday,
        "thursday" | "thu" => Thursday,
        "friday" | "fri" => Friday,
        "saturday" | "sat" => Saturday,
        "sunday" | "sun" => Sunday,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Wednesday noon in Berlin, UTC+1, some nanoseconds past.
    fn now() -> Zoned {
        "2026-02-04T12:00:00.123456+01:00[Europe/Berlin]".parse().unwrap()
    }

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        match parse(text, &now()) {
            Ok(time) => assert_eq!(time, at(expected), "{text} gave {}", Timestamp::from_millisecond(time).unwrap()),
            Err(error) => panic!("{error}"),
        }
    }

    #[track_caller]
    fn refuse(text: &str, part: &str) {
        match parse(text, &now()) {
            Ok(time) => panic!("`{text}` gave {}", Timestamp::from_millisecond(time).unwrap()),
            Err(error) => assert!(error.to_string().contains(part), "`{text}`: {error}"),
        }
    }

    #[test]
    fn times_with_a_zone() {
        for text in [
            "2026-01-31T12:00:00Z",
            "2026-01-31t12:00:00z",
            " 2026-01-31T12:00:00Z\n",
            "2026-01-31 12:00:00Z",
            "2026-01-31T12:00Z",
            "2026-01-31T13:00:00+01:00",
            "2026-01-31T13:00:00+0100",
            "2026-01-31T07:30:00-04:30",
            "2026-01-31 12:00 UTC",
            "2026-01-31 12:00:00.000 utc",
            "2026-01-31T12:00 Z",
            "2026-01-31 13:00 +01:00",
            "2026-01-31 07:30:00 -0430",
            "2026-01-31 13:00 Europe/Berlin",
            "2026-01-31T13:00:00+01:00[Europe/Berlin]",
            "2026-01-31T13:00[Europe/Berlin]",
        ] {
            check(text, "2026-01-31T12:00:00Z");
        }
        check("2026-01-31 UTC", "2026-01-31T00:00:00Z");
        check("2026-01-31Z", "2026-01-31T00:00:00Z");
        check("2026-01-31 Europe/Berlin", "2026-01-30T23:00:00Z");
        check("1960-01-01T00:00:00Z", "1960-01-01T00:00:00Z");
    }

    #[test]
    fn fractions_of_a_millisecond_round_up() {
        check("2026-01-31T12:00:00.123Z", "2026-01-31T12:00:00.123Z");
        check("2026-01-31T12:00:00.123000001Z", "2026-01-31T12:00:00.124Z");
        check("1960-01-31T12:00:00.1230001Z", "1960-01-31T12:00:00.124Z");
        check("now", "2026-02-04T11:00:00.124Z");
    }

    #[test]
    fn times_without_a_zone_say_what_to_add() {
        refuse(
            "2026-01-31 12:00",
            "write 2026-01-31T12:00:00Z for UTC, or 2026-01-31T12:00:00+01:00 for the local time",
        );
        refuse("2026-01-31T12:00:00", "has no time zone");
        refuse("2026-01-31T12:00:00.5", "has no time zone");
        refuse("2026-01-31", "write 2026-01-31T00:00:00Z for UTC");
        // Skipped and repeated hours have no single offset to propose.
        refuse("2025-03-30T02:30", "has no time zone");
    }

    #[test]
    fn hours_that_clocks_skip_or_repeat() {
        refuse("2025-03-30 02:30 Europe/Berlin", "exists twice in Europe/Berlin");
        refuse("2025-10-26 02:30 Europe/Berlin", "write an offset");
        check("2025-10-26T02:30:00+02:00", "2025-10-26T00:30:00Z");
        refuse("2025-07-01T12:00:00+01:00[Europe/Berlin]", "is not a time");
    }

    #[test]
    fn spans_before_now() {
        for (text, expected) in [
            ("5 minutes ago", "2026-02-04T10:55:00.124Z"),
            ("5 Minutes Ago", "2026-02-04T10:55:00.124Z"),
            ("5m ago", "2026-02-04T10:55:00.124Z"),
            ("5min ago", "2026-02-04T10:55:00.124Z"),
            ("-5m", "2026-02-04T10:55:00.124Z"),
            ("- 5 minutes", "2026-02-04T10:55:00.124Z"),
            ("2 hours 30 minutes ago", "2026-02-04T08:30:00.124Z"),
            ("2 hours, 30 minutes ago", "2026-02-04T08:30:00.124Z"),
            ("2 hours and 30 minutes ago", "2026-02-04T08:30:00.124Z"),
            ("2h30m ago", "2026-02-04T08:30:00.124Z"),
            ("-1h30m", "2026-02-04T09:30:00.124Z"),
            ("1.5h ago", "2026-02-04T09:30:00.124Z"),
            ("an hour ago", "2026-02-04T10:00:00.124Z"),
            ("a day ago", "2026-02-03T11:00:00.124Z"),
            ("30 seconds ago", "2026-02-04T10:59:30.124Z"),
            ("100ms ago", "2026-02-04T11:00:00.024Z"),
            ("1 week ago", "2026-01-28T11:00:00.124Z"),
            ("2 months ago", "2025-12-04T11:00:00.124Z"),
            ("1 year ago", "2025-02-04T11:00:00.124Z"),
            // A calendar day, across the change of clocks.
            ("180 days ago", "2025-08-08T10:00:00.124Z"),
            ("0s ago", "2026-02-04T11:00:00.124Z"),
        ] {
            check(text, expected);
        }
    }

    #[test]
    fn words() {
        for (text, expected) in [
            ("now", "2026-02-04T11:00:00.124Z"),
            ("NOW", "2026-02-04T11:00:00.124Z"),
            ("today", "2026-02-03T23:00:00Z"),
            ("today 09:30", "2026-02-04T08:30:00Z"),
            ("today 9:30", "2026-02-04T08:30:00Z"),
            ("today at 09:30:15", "2026-02-04T08:30:15Z"),
            ("today 09:30 UTC", "2026-02-04T09:30:00Z"),
            ("yesterday", "2026-02-02T23:00:00Z"),
            ("Yesterday 14:30", "2026-02-03T13:30:00Z"),
            ("yesterday   14:30  America/New_York", "2026-02-03T19:30:00Z"),
            ("yesterday UTC", "2026-02-03T00:00:00Z"),
            ("yesterday 14:30 -0500", "2026-02-03T19:30:00Z"),
            ("last monday", "2026-02-01T23:00:00Z"),
            ("last tuesday", "2026-02-02T23:00:00Z"),
            ("last wednesday", "2026-01-27T23:00:00Z"),
            ("last thursday", "2026-01-28T23:00:00Z"),
            ("last Fri 18:00", "2026-01-30T17:00:00Z"),
            ("last sunday at 18:00 UTC", "2026-02-01T18:00:00Z"),
        ] {
            check(text, expected);
        }
        // The day is the zone's: in Kiritimati it is already Thursday.
        let late: Zoned = "2026-02-04T23:00:00+00:00[UTC]".parse().unwrap();
        assert_eq!(parse("today Pacific/Kiritimati", &late), Ok(at("2026-02-04T10:00:00Z")));
        // Beirut's clocks skip midnight on this day.
        let skipped: Zoned = "2021-03-28T12:00:00+03:00[Asia/Beirut]".parse().unwrap();
        assert_eq!(parse("today", &skipped), Ok(at("2021-03-27T22:00:00Z")));
        assert!(matches!(parse("today 00:30", &skipped), Err(WhenError::Ambiguous { .. })));
    }

    #[test]
    fn nothing_after_now() {
        assert_eq!(parse("2026-02-04T11:00:00.123456Z", &now()), Ok(at("2026-02-04T11:00:00.124Z")));
        refuse("2026-02-04T11:00:00.123457Z", "must lie in the past");
        refuse("today 13:00", "is 2026-02-04T12:00:00Z, and now is only 2026-02-04T11:00:00.123Z");
        refuse("9999-01-01T00:00:00Z", "must lie in the past");
    }

    #[test]
    fn everything_else_is_refused() {
        for text in ["", " ", "\t\n"] {
            assert_eq!(parse(text, &now()), Err(WhenError::Empty));
        }
        for text in [
            "12",
            "2026",
            "1700000000",
            "@1700000000",
            "0",
            "-",
            "-5",
            "--5m",
            "ago",
            "5 ago",
            "minutes ago",
            "5",
            "5m",
            "5 minutes",
            "+5m",
            "in 5 minutes",
            "5 minutes from now",
            "tomorrow",
            "today tomorrow",
            "next monday",
            "monday",
            "last week",
            "last month",
            "last",
            "last monday tuesday",
            "yesterday 25:00",
            "yesterday 14",
            "yesterday 3pm",
            "yesterday 14:30 CET",
            "yesterday 14:30 15:30",
            "yesterday at",
            "14:30",
            "noon",
            "-5 minutes ago",
            "- -5m",
            "5 minutes ago ago",
            "5 parsecs ago",
            "1M ago",
            "-1M",
            "5m -3m ago",
            "PT5M ago",
            "-PT5M",
            "2026-01",
            "2026-13-01T00:00:00Z",
            "2026-02-30T00:00:00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12:00:00X",
            "2026-01-31T12:00:00Z garbage",
            "2026-01-31 12",
            "2026-01-31 12:00 CET",
            "2026-01-31 12:00 EST",
            "2026-01-31 12:00 Mars/Olympus",
            "2026-01-31 12:00 +25:00x",
            "2026-01-31T",
            "01/31/2026",
            "31.01.2026",
            "Jan 31 2026",
            "20260131T120000Z",
            "2026-01-31T12:00:00Z..",
            "2 hours 30 ago",
            "now 12:00",
            "now ago",
            "0x10",
            "2026-01-31T12:00:00Z ago",
            "1e3s ago",
            "9999999999999999999 days ago",
            "100000 years ago",
            "yesterday ago",
            "äöü",
            "today\u{a0}9:99",
        ] {
            refuse(text, "");
        }
        refuse("monday", "write `last monday`");
        refuse("14:30", "write `today 14:30` or `yesterday 14:30`");
        refuse("1M ago", "months or minutes");
        refuse("-5m ago", "goes back twice");
        refuse("gestern", "5 minutes ago");
    }
}
