//! Filter expressions over cells, one grammar for the command line, matrices and quarantine.
//!
//! ```text
//! expression := term (("|" | "+") term)*          either
//! term       := factor (("&" factor) | ("-" factor))*   both; but not
//! factor     := "!" factor | "(" expression ")" | name "(" pattern ")"
//! ```
//!
//! `-` is difference: `a - b` is `a & !b`. Patterns know `*` (any run) and `?` (any one character) and must match the
//! whole value; several may be given, separated by `;`. A layout matches in its short and its full form.

use crate::error::{HarnessError, Result};
use crate::matrix::Cell;

/// Names of predicates with what they look at.
pub const PREDICATES: [(&str, &str); 14] = [
    ("id", "the whole id"),
    ("model", "the model"),
    ("suite", "the suite of prompts"),
    ("api", "engine, sync-direct, sync-coordinator, async-direct, async-coordinator, serve"),
    ("layout", "tp=2,pp=2 or tp=2,pp=2,dp=1,ep=1"),
    ("ranks", "how many ranks the layout has"),
    ("transport", "threads, mpi, nccl"),
    ("device", "cpu, reference, cuda"),
    ("feature", "the feature set"),
    ("fault", "the fault plan, none without"),
    ("relation", "bitwise, reference, distribution"),
    ("required", "the verdict that the cell needs"),
    ("block", "the block of the matrix"),
    ("all", "every cell; takes no pattern"),
];

/// A parsed filter expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// A predicate with its patterns.
    Is(&'static str, Vec<String>),
    /// Not this.
    Not(Box<Filter>),
    /// Both.
    And(Box<Filter>, Box<Filter>),
    /// Either.
    Or(Box<Filter>, Box<Filter>),
}

impl Filter {
    /// Parses an expression.
    pub fn parse(expression: &str) -> Result<Self> {
        let mut parser = Parser { text: expression, at: 0, depth: 0 };
        let filter = parser.expression()?;
        parser.skip_space();
        if parser.at < expression.len() {
            return Err(parser.wrong("expected `&`, `|`, `-` or the end"));
        }
        Ok(filter)
    }

    /// Whether the expression selects `cell`.
    pub fn matches(&self, cell: &Cell) -> bool {
        match self {
            Self::Is(name, patterns) => {
                *name == "all"
                    || values(name, cell).iter().any(|value| patterns.iter().any(|p| glob(p, value)))
            }
            Self::Not(inner) => !inner.matches(cell),
            Self::And(a, b) => a.matches(cell) && b.matches(cell),
            Self::Or(a, b) => a.matches(cell) || b.matches(cell),
        }
    }
}

/// The values of a cell that a predicate looks at.
fn values(name: &str, cell: &Cell) -> Vec<String> {
    let one = |value: &str| vec![value.to_owned()];
    match name {
        "id" => one(&cell.id),
        "model" => one(&cell.model),
        "suite" => one(&cell.suite),
        "api" => one(cell.api.name()),
        "layout" => vec![cell.layout.to_string(), cell.layout.full()],
        "ranks" => one(&cell.layout.ranks().to_string()),
        "transport" => one(&cell.transport),
        "device" => one(&cell.device),
        "feature" => one(&cell.feature),
        "fault" => one(&cell.fault),
        "relation" => one(cell.relation.name()),
        "required" => one(cell.required.name()),
        "block" => one(&cell.block),
        _ => Vec::new(),
    }
}

/// Matches `*` and `?` against the whole of `text`, in time linear in both up to the number of stars.
pub fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where to go on after a mismatch: behind the last star, one character further in the text.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => {
                let Some((after_star, from)) = retry else { return false };
                retry = Some((after_star, from + 1));
                (p, t) = (after_star, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Nesting that is certainly a mistake, and would otherwise be a way to exhaust the stack.
const MOST_NESTED: usize = 64;

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn wrong(&self, reason: &str) -> HarnessError {
        HarnessError::Filter {
            expression: self.text.into(),
            column: self.text[..self.at].chars().count() + 1,
            reason: reason.into(),
        }
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.text[self.at..].trim_start().len();
    }

    /// Consumes `c` if it is next.
    fn eat(&mut self, c: char) -> bool {
        self.skip_space();
        let found = self.text[self.at..].starts_with(c);
        self.at += if found { c.len_utf8() } else { 0 };
        found
    }

    fn expression(&mut self) -> Result<Filter> {
        let mut left = self.term()?;
        while self.eat('|') || self.eat('+') {
            left = Filter::Or(Box::new(left), Box::new(self.term()?));
        }
        Ok(left)
    }

    fn term(&mut self) -> Result<Filter> {
        let mut left = self.factor()?;
        loop {
            if self.eat('&') {
                left = Filter::And(Box::new(left), Box::new(self.factor()?));
            } else if self.eat('-') {
                let right = Filter::Not(Box::new(self.factor()?));
                left = Filter::And(Box::new(left), Box::new(right));
            } else {
                return Ok(left);
            }
        }
    }

    fn factor(&mut self) -> Result<Filter> {
        self.depth += 1;
        if self.depth > MOST_NESTED {
            return Err(self.wrong("nested too deeply"));
        }
        let factor = if self.eat('!') {
            Filter::Not(Box::new(self.factor()?))
        } else if self.eat('(') {
            let inner = self.expression()?;
            if !self.eat(')') {
                return Err(self.wrong("expected `)`"));
            }
            inner
        } else {
            self.predicate()?
        };
        self.depth -= 1;
        Ok(factor)
    }

    fn predicate(&mut self) -> Result<Filter> {
        self.skip_space();
        let rest = &self.text[self.at..];
        let name = &rest[..rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len())];
        let known = PREDICATES.iter().map(|(known, _)| *known).find(|known| *known == name);
        let Some(known) = known else {
            let names: Vec<&str> = PREDICATES.iter().map(|(name, _)| *name).collect();
            return Err(self.wrong(&format!("expected one of {}", names.join(", "))));
        };
        self.at += name.len();
        if !self.eat('(') {
            return Err(self.wrong("expected `(`"));
        }
        let rest = &self.text[self.at..];
        let Some(end) = rest.find(')') else { return Err(self.wrong("expected `)`")) };
        let patterns: Vec<String> = rest[..end].split(';').map(|p| p.trim().to_owned()).collect();
        let empty = patterns.iter().any(String::is_empty);
        if known == "all" && patterns != [""] {
            return Err(self.wrong("`all` takes no pattern"));
        }
        if known != "all" && empty {
            return Err(self.wrong("expected a pattern"));
        }
        self.at += end + 1;
        Ok(Filter::Is(known, patterns))
    }
}
