//! UTC time as text, without a calendar library.

use std::time::{SystemTime, UNIX_EPOCH};

/// `2026-11-23T15:13:38Z`, now.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    text(seconds)
}

/// `2026-11-23`, today.
pub fn today() -> String {
    now()[..10].to_owned()
}

/// Seconds since 1970 as text. The calendar follows Howard Hinnant's days-from-civil, read backwards.
fn text(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    #[test]
    fn known_instants() {
        assert_eq!(super::text(0), "1970-01-01T00:00:00Z");
        assert_eq!(super::text(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(super::text(1_709_251_199), "2024-02-29T23:59:59Z");
        assert_eq!(super::text(4_102_444_800), "2100-01-01T00:00:00Z");
    }
}
