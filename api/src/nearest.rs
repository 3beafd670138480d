//! "Did you mean ...?": the known name nearest to a mistyped one.

/// The candidate with the smallest edit distance to `name`; the first of equals.
pub(crate) fn of<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates.into_iter().min_by_key(|candidate| distance(candidate, name))
}

/// Edit distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, c) in a.chars().enumerate() {
        let mut corner = i;
        let mut left = i + 1;
        for (j, d) in b.iter().enumerate() {
            let up = row[j + 1];
            let here = (corner + usize::from(c != *d)).min(up + 1).min(left + 1);
            row[j] = left;
            (corner, left) = (up, here);
        }
        row[b.len()] = left;
    }
    row[b.len()]
}
