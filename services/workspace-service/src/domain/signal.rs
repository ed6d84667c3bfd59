//! A **signal** by the name a shell knows it by, or by its number.

use contract::ApiError;

/// Names and numbers of Linux on x86-64 (signal(7)).
const NAMES: [(&str, u8); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];
/// The highest number, a real-time signal's.
const LAST: u8 = 64;

/// The number of a signal.
///
/// # Errors
/// `invalid_argument`: there is none of that name or number.
pub fn number(text: &str) -> Result<u8, ApiError> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let number = known.or_else(|| text.parse().ok().filter(|number| (1..=LAST).contains(number)));
    number.ok_or_else(|| {
        let shown: String = text.chars().take(40).collect();
        ApiError::invalid_argument(format!("{shown:?} is no signal"))
            .hint("name one like TERM, INT, HUP or KILL, or give a number from 1 to 64")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, wanted) in [("TERM", 15), ("sigkill", 9), ("SIGHUP", 1), ("10", 10), ("64", 64)] {
            assert_eq!(number(text), Ok(wanted), "{text}");
        }
        for wrong in ["", "0", "65", "SIG", "NOPE", "-9"] {
            assert!(number(wrong).is_err(), "{wrong}");
        }
    }
}
