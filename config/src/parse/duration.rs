//! Durations as Go and protobuf write them.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DurationError {
    #[error("it is empty")]
    Empty,
    #[error("a number is missing")]
    NoNumber,
    #[error("a unit is missing (ns, us, ms, s, m, h)")]
    NoUnit,
    #[error("unknown unit (ns, us, ms, s, m, h are known)")]
    UnknownUnit,
    #[error("it must not be negative")]
    Negative,
    #[error("it is too long")]
    TooLong,
}

/// Reads `1h30m`, `1.5s`, `250ms`: a sequence of decimal numbers with a unit each. Only a zero may lack its unit.
///
/// Source: Go's `time.ParseDuration`, of which the JSON form of protobuf's Duration (`1.5s`) is a part.
pub(crate) fn parse(text: &str) -> Result<Duration, DurationError> {
    if text.starts_with('-') {
        return Err(DurationError::Negative);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(DurationError::Empty);
    }
    let mut nanoseconds: u128 = 0;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len()));
        let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len()));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(DurationError::NoNumber);
        }
        let scale: u128 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err(DurationError::NoUnit),
            _ => return Err(DurationError::UnknownUnit),
        };
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| DurationError::TooLong)? };
        // What lies below a nanosecond is cut off, as Go does.
        let fraction = &fraction[..fraction.len().min(18)];
        let part: u64 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| DurationError::NoNumber)? };
        nanoseconds += u128::from(whole) * scale + u128::from(part) * scale / 10u128.pow(fraction.len() as u32);
        rest = tail;
    }
    // The limit of Go's int64, about 292 years.
    if nanoseconds > i64::MAX as u128 {
        return Err(DurationError::TooLong);
    }
    Ok(Duration::new((nanoseconds / 1_000_000_000) as u64, (nanoseconds % 1_000_000_000) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_read() {
        for (text, milliseconds) in [
            ("1s", 1_000),
            ("250ms", 250),
            ("1h30m", 5_400_000),
            ("1.5s", 1_500),
            (".5s", 500),
            ("1m0.25s", 60_250),
            ("0", 0),
            ("0s", 0),
            ("+2s", 2_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        assert_eq!(parse("1us"), Ok(Duration::from_micros(1)));
        assert_eq!(parse("0.0000000019s"), Ok(Duration::from_nanos(1)));
    }

    #[test]
    fn other_texts_are_refused() {
        for (text, error) in [
            ("", DurationError::Empty),
            ("5", DurationError::NoUnit),
            ("1.5", DurationError::NoUnit),
            ("s", DurationError::NoNumber),
            (".s", DurationError::NoNumber),
            ("1.2.3s", DurationError::NoNumber),
            ("1d", DurationError::UnknownUnit),
            ("1 s", DurationError::UnknownUnit),
            ("-1s", DurationError::Negative),
            ("9999999h", DurationError::TooLong),
            ("99999999999999999999999s", DurationError::TooLong),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }
}
