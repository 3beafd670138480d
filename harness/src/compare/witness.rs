//! Witnesses: counters that show that a claimed feature really happened. Without them a pass may be vacuous.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Counters that a subject reports about one run, by name.
pub type Witnesses = BTreeMap<String, u64>;

/// How a witness is compared with the demanded number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Equal.
    Eq,
    /// More than.
    Gt,
    /// At least.
    Ge,
    /// Less than.
    Lt,
    /// At most.
    Le,
}

/// A demand on one witness, written `> 0`, `>= 2`, `== 8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Demand {
    /// How to compare.
    pub op: Op,
    /// With which number.
    pub number: u64,
}

impl Demand {
    /// Demands exactly `number`.
    pub const fn exactly(number: u64) -> Self {
        Self { op: Op::Eq, number }
    }

    /// Demands `number` or more.
    pub const fn at_least(number: u64) -> Self {
        Self { op: Op::Ge, number }
    }

    /// Whether `value` meets the demand.
    pub const fn holds(self, value: u64) -> bool {
        match self.op {
            Op::Eq => value == self.number,
            Op::Gt => value > self.number,
            Op::Ge => value >= self.number,
            Op::Lt => value < self.number,
            Op::Le => value <= self.number,
        }
    }
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = match self.op {
            Op::Eq => "==",
            Op::Gt => ">",
            Op::Ge => ">=",
            Op::Lt => "<",
            Op::Le => "<=",
        };
        write!(f, "{op} {}", self.number)
    }
}

impl FromStr for Demand {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        let ops = [("==", Op::Eq), (">=", Op::Ge), ("<=", Op::Le), (">", Op::Gt), ("<", Op::Lt)];
        let found = ops.iter().find_map(|(name, op)| Some((*op, trimmed.strip_prefix(name)?)));
        let (op, rest) = found.ok_or_else(|| format!("`{text}` is not a demand such as `> 0` or `== 8`"))?;
        let number = rest
            .trim()
            .parse()
            .map_err(|_| format!("`{}` in `{text}` is not a whole number", rest.trim()))?;
        Ok(Self { op, number })
    }
}

impl TryFrom<String> for Demand {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Demand> for String {
    fn from(demand: Demand) -> Self {
        demand.to_string()
    }
}

/// A demand that was not met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unmet {
    /// Name of the witness.
    pub witness: String,
    /// What was demanded, as text.
    pub demand: String,
    /// What was reported; `None` when the subject said nothing, which is no witness at all.
    pub value: Option<u64>,
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Some(value) => write!(f, "witness `{}` is {value}, demanded {}", self.witness, self.demand),
            None => write!(f, "witness `{}` is missing, demanded {}", self.witness, self.demand),
        }
    }
}

/// Checks every demand; a missing witness is unmet.
pub fn unmet(demands: &BTreeMap<String, Demand>, witnesses: &Witnesses) -> Vec<Unmet> {
    let value = |name: &str| witnesses.get(name).copied();
    demands
        .iter()
        .filter(|(name, demand)| !value(name).is_some_and(|value| demand.holds(value)))
        .map(|(name, demand)| Unmet { witness: name.clone(), demand: demand.to_string(), value: value(name) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demands_parse_print_and_hold() {
        for (text, value, holds) in [
            ("> 0", 0, false),
            ("> 0", 1, true),
            (">= 2", 2, true),
            (">= 2", 1, false),
            ("== 8", 8, true),
            ("== 8", 9, false),
            ("< 3", 2, true),
            ("< 3", 3, false),
            ("<= 3", 3, true),
            ("<= 3", 4, false),
        ] {
            let demand: Demand = text.parse().unwrap();
            assert_eq!(demand.to_string(), text);
            assert_eq!(demand.holds(value), holds, "{value} {text}");
        }
        assert!("0".parse::<Demand>().is_err());
        assert!("> x".parse::<Demand>().is_err());
        assert!("=> 1".parse::<Demand>().is_err());
    }

    #[test]
    fn silence_is_no_witness() {
        let demands = BTreeMap::from([("evictions".to_owned(), Demand { op: Op::Ge, number: 0 })]);
        let unmet = unmet(&demands, &Witnesses::new());
        assert_eq!(unmet[0].to_string(), "witness `evictions` is missing, demanded >= 0");
    }
}
