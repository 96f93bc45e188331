//! The year of a master or a release (contract §3).

use chrono::{Datelike, Utc};
use serde_json::value::RawValue;

/// Oldest year that counts: recordings before 1860 don't exist (contract §3).
const FIRST: i64 = 1860;

/// The year that the JSON value `raw` states, if it lies between 1860 and next year (UTC).
///
/// An integer is taken as it is; of anything else the first four characters of its text must be decimal digits, of any
/// script: `"1999-03-00"` is 1999, `"19690"` is 1969, `"2"` and `"Unknown"` are none.
pub fn parse(raw: Option<&RawValue>) -> Option<i32> {
    let raw = raw?.get();
    let year = match raw.as_bytes().first()? {
        b'"' => leading_year(&serde_json::from_str::<String>(raw).ok()?)?,
        b'-' | b'0'..=b'9' => match raw.parse::<i64>() {
            Ok(integer) => integer,
            Err(_) if raw.bytes().any(|b| matches!(b, b'.' | b'e' | b'E')) => {
                // From 1e16 on Python, whose text of a number the rule means, writes exponents: no year.
                let number = raw.parse::<f64>().ok().filter(|n| n.abs() < 1e16)?;
                leading_year(&number.to_string())?
            }
            Err(_) => return None,
        },
        _ => return None,
    };
    let plausible = (FIRST..=i64::from(Utc::now().year()) + 1).contains(&year);
    plausible.then(|| i32::try_from(year).ok()).flatten()
}

/// The number that the first four characters make. Fewer than four digits can't be 1860 or more.
fn leading_year(text: &str) -> Option<i64> {
    // U+001C to U+001F separate lines in Python, whose `strip` the rule comes from; `char::is_whitespace` lacks them.
    let mut chars = text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)).chars();
    (0..4).try_fold(0, |year, _| Some(year * 10 + decimal_digit(chars.next()?)?))
}

/// First code point of each run of ten decimal digits (Unicode 15.1, general category Nd).
const ZEROS: [u32; 64] = [
    0x30, 0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xDE6, 0xE50, 0xED0,
    0xF20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40, 0x1C50, 0xA620,
    0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10, 0x104A0, 0x10D30, 0x11066, 0x110F0, 0x11136, 0x111D0,
    0x112F0, 0x11450, 0x114D0, 0x11650, 0x116C0, 0x11730, 0x118E0, 0x11950, 0x11C50, 0x11D50, 0x11DA0, 0x11F50,
    0x16A60, 0x16AC0, 0x16B50, 0x1D7CE, 0x1E140, 0x1E2F0, 0x1E4F0, 0x1E950, 0x1FBF0,
];

fn decimal_digit(c: char) -> Option<i64> {
    let c = u32::from(c);
    if (0x1D7CE..=0x1D7FF).contains(&c) {
        return Some(i64::from((c - 0x1D7CE) % 10)); // five runs without a gap: mathematical digits
    }
    ZEROS.iter().find(|&&zero| (zero..zero + 10).contains(&c)).map(|zero| i64::from(c - zero))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn year(json: &str) -> Option<i32> {
        let raw: Box<RawValue> = serde_json::from_str(json).expect("JSON");
        parse(Some(&raw))
    }

    #[test]
    fn the_contract_s_examples() {
        for (json, expected) in [
            (r#""1999-03-00""#, Some(1999)),
            (r#""19690""#, Some(1969)),
            (r#"" 2001 ""#, Some(2001)),
            ("1999.5", Some(1999)),
            ("1999", Some(1999)),
            ("2e21", None),
            (r#""١٩٩٩""#, Some(1999)),
            (r#""0400-01-01""#, None),
            (r#""2""#, None),
            (r#""+199""#, None),
            (r#""1_99""#, None),
            (r#""Unknown""#, None),
            (r#""""#, None),
            ("true", None),
            ("null", None),
            ("[1999]", None),
            ("123456789012345678901234567890", None),
            (r#""1859""#, None),
            (r#""1860""#, Some(1860)),
        ] {
            assert_eq!(year(json), expected, "{json}");
        }
        assert_eq!(parse(None), None);
    }

    #[test]
    fn next_year_is_the_last_that_counts() {
        let this = Utc::now().year();
        assert_eq!(year(&format!("\"{}\"", this + 1)), Some(this + 1));
        assert_eq!(year(&format!("\"{}\"", this + 2)), None);
    }
}
