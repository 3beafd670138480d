//! Numbers as a reader needs them: decimal value, bit pattern, distance in units in the last place.

use serde::{Deserialize, Serialize};

/// An f32 for reports: JSON has no NaN and decimal text hides bits, so both forms are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shown {
    /// Shortest decimal that reads back to the same bits, or `NaN`, `inf`, `-inf`.
    pub value: String,
    /// The bit pattern, eight hexadecimal digits.
    pub bits: String,
}

impl From<f32> for Shown {
    fn from(value: f32) -> Self {
        Self { value: format!("{value}"), bits: format!("{:08x}", value.to_bits()) }
    }
}

/// Number of representable f32 values between `a` and `b`; `None` when either is NaN. `-0.0` and `0.0` are 1 apart
/// here: they are different bits.
pub fn ulp_distance(a: f32, b: f32) -> Option<u64> {
    if a.is_nan() || b.is_nan() {
        return None;
    }
    let ordered = |value: f32| {
        let bits = i64::from(value.to_bits());
        if value.is_sign_negative() { -(bits & 0x7fff_ffff) - 1 } else { bits }
    };
    Some(ordered(a).abs_diff(ordered(b)))
}

/// Both sides of the first differing position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Index among the generated tokens.
    pub position: usize,
    /// The token that was expected, if the expected side has one here.
    pub expected_token: Option<u32>,
    /// The token that was answered, if there is one here.
    pub actual_token: Option<u32>,
    /// Log-probability on the expected side.
    pub expected_logprob: Option<Shown>,
    /// Log-probability on the answered side.
    pub actual_logprob: Option<Shown>,
    /// Distance of the two log-probabilities in units in the last place, when both are numbers.
    pub ulp: Option<u64>,
    /// The golden's own gap between its best and second-best logit here.
    pub margin: Option<Shown>,
    /// The golden's second-best token here.
    pub runner_up: Option<u32>,
}

impl Difference {
    /// Takes both sides apart at `position`.
    pub fn at(position: usize, expected: (&[u32], &[f32]), actual: (&[u32], &[f32])) -> Self {
        let (left, right) = (expected.1.get(position).copied(), actual.1.get(position).copied());
        Self {
            position,
            expected_token: expected.0.get(position).copied(),
            actual_token: actual.0.get(position).copied(),
            expected_logprob: left.map(Shown::from),
            actual_logprob: right.map(Shown::from),
            ulp: left.zip(right).and_then(|(a, b)| ulp_distance(a, b)),
            margin: None,
            runner_up: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_in_units_in_the_last_place() {
        assert_eq!(ulp_distance(1.0, 1.0), Some(0));
        assert_eq!(ulp_distance(1.0, 1.000_000_1), Some(1));
        assert_eq!(ulp_distance(-1.0, f32::from_bits((-1.0_f32).to_bits() + 3)), Some(3));
        assert_eq!(ulp_distance(0.0, -0.0), Some(1));
        assert_eq!(ulp_distance(f32::from_bits(1), -f32::from_bits(1)), Some(3));
        assert_eq!(ulp_distance(f32::NAN, 0.0), None);
    }

    #[test]
    fn non_finite_numbers_are_readable() {
        assert_eq!(Shown::from(f32::NAN).value, "NaN");
        assert_eq!(Shown::from(f32::NEG_INFINITY).bits, "ff800000");
        assert_eq!(Shown::from(-0.1), Shown { value: "-0.1".into(), bits: "bdcccccd".into() });
    }
}
