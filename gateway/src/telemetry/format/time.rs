//! The `strftime` dialect of Envoy's `START_TIME`, always in UTC.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::fmt::strtime::BrokenDownTime;
use jiff::tz::Offset;

/// Appends `time` in `format`; without one as `2026-11-22T00:57:53.253Z`.
pub(super) fn write(time: SystemTime, format: Option<&str>, out: &mut Vec<u8>) {
    // A clock before 1970 or after the year 9999 is no clock; it prints as 1970.
    let timestamp = Timestamp::try_from(time).ok().filter(|_| time >= UNIX_EPOCH).unwrap_or_default();
    let civil = Offset::UTC.to_datetime(timestamp);
    match format {
        None | Some("") => {
            let (date, time) = (civil.date(), civil.time());
            print(
                format_args!(
                    "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
                    date.year(),
                    date.month(),
                    date.day(),
                    time.hour(),
                    time.minute(),
                    time.second(),
                    time.millisecond()
                ),
                out,
            );
        }
        Some(format) => formatted(timestamp, civil, format, out),
    }
}

fn formatted(timestamp: Timestamp, civil: DateTime, format: &str, out: &mut Vec<u8>) {
    let nanoseconds = format!("{:09}", civil.time().subsec_nanosecond());
    let mut rest = format;
    while let Some(percent) = rest.find('%') {
        out.extend_from_slice(&rest.as_bytes()[..percent]);
        rest = &rest[percent + 1..];
        let mut letters = rest.chars();
        let taken = match (letters.next(), letters.next(), letters.next()) {
            (None, ..) => {
                out.push(b'%');
                0
            }
            (Some('E'), Some('3'), Some('S')) => {
                print(format_args!("{:02}.{}", civil.second(), &nanoseconds[..3]), out);
                3
            }
            (Some('E'), Some('*'), Some('S')) => {
                let fraction = nanoseconds.trim_end_matches('0');
                let point = if fraction.is_empty() { "" } else { "." };
                print(format_args!("{:02}{point}{fraction}", civil.second()), out);
                3
            }
            (Some('E'), Some('z'), _) => {
                out.extend_from_slice(b"+00:00");
                2
            }
            (Some(digit @ '1'..='9'), Some('f'), _) => {
                let digits = usize::from(u8::try_from(digit).unwrap_or(b'9') - b'0');
                out.extend_from_slice(&nanoseconds.as_bytes()[..digits]);
                2
            }
            // Envoy prints seconds in the machine's zone here, which is of no use to anybody.
            (Some('3' | '6' | '9'), Some('s'), _) => {
                print(format_args!("{}", timestamp.as_second()), out);
                2
            }
            (Some(letter), ..) => {
                conversion(letter, timestamp, civil, &nanoseconds, out);
                letter.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    out.extend_from_slice(rest.as_bytes());
}

fn conversion(letter: char, timestamp: Timestamp, civil: DateTime, nanoseconds: &str, out: &mut Vec<u8>) {
    let plain;
    let format = match letter {
        '%' => return out.push(b'%'),
        's' => return print(format_args!("{}", timestamp.as_second()), out),
        'f' => return out.extend_from_slice(nanoseconds.as_bytes()),
        'z' => return out.extend_from_slice(b"+0000"),
        'Z' => return out.extend_from_slice(b"UTC"),
        // The forms of the C locale.
        'c' => "%a %b %e %H:%M:%S %Y",
        'x' | 'D' => "%m/%d/%y",
        'X' | 'T' => "%H:%M:%S",
        'r' => "%I:%M:%S %p",
        'R' => "%H:%M",
        'F' => "%Y-%m-%d",
        'Y' | 'm' | 'd' | 'H' | 'M' | 'S' | 'a' | 'A' | 'b' | 'B' | 'y' | 'j' | 'e' | 'I' | 'p' | 'U' | 'u' | 'w'
        | 'V' | 'G' | 'h' | 'C' | 'k' | 'l' => {
            plain = ['%', letter].iter().collect::<String>();
            plain.as_str()
        }
        _ => return print(format_args!("%{letter}"), out),
    };
    let text = BrokenDownTime::from(civil).to_string(format).unwrap_or_default();
    out.extend_from_slice(text.as_bytes());
}

/// Writing to a `Vec` can't fail.
fn print(arguments: std::fmt::Arguments<'_>, out: &mut Vec<u8>) {
    let _ = out.write_fmt(arguments);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_conversion_prints_utc() {
        // Sunday, 22 November 2026, 00:52:47.708 UTC.
        let time = UNIX_EPOCH + Duration::from_millis(1_795_308_767_708);
        for (format, expected) in [
            ("", "2026-11-22T00:52:47.708Z"),
            ("%Y/%m/%dT%H:%M:%S%z %s", "2026/11/22T00:52:47+0000 1795308767"),
            ("%s.%3f", "1795308767.708"),
            ("%f %9f %1f", "708000000 708000000 7"),
            ("%E3S %E*S %Ez %Z", "47.708 47.708 +00:00 UTC"),
            ("%F %T %D %R", "2026-11-22 00:52:47 11/22/26 00:52"),
            ("%c|%x|%X|%r", "Sun Nov 22 00:52:47 2026|11/22/26|00:52:47|12:52:47 AM"),
            ("%a %A %b %B %h", "Sun Sunday Nov November Nov"),
            ("%y %j %e %I %p %C %k %l", "26 326 22 12 AM 20  0 12"),
            ("%U %u %w %V %G", "47 7 0 47 2026"),
            ("100%% %q %0f %", "100% %q %0f %"),
        ] {
            let mut out = Vec::new();
            write(time, Some(format), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{format}");
        }
    }
}
