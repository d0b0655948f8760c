//! How many votes decide.

/// More than half of `voters`.
pub fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// Votes that decide in one round: any two fast quorums and a majority have enough in common that
/// a later ballot can tell which value was decided.
///
/// With `f = n − majority` failures survived by the slow ballot, the fast one survives
/// `e = min(f, ⌊(n + 1 − f) / 2⌋)`; the chooser's tests check it exhaustively for 3 to 7
/// voters.
pub fn fast_quorum(voters: usize) -> usize {
    let slow_missing_max = voters.saturating_sub(majority(voters));
    voters - slow_missing_max.min((voters + 1 - slow_missing_max) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_quorum_is_the_checked_table() {
        let table: Vec<usize> = (1..=9).map(fast_quorum).collect();
        assert_eq!(table, [1, 2, 2, 3, 3, 4, 5, 5, 6]);
    }

    #[test]
    fn a_fast_quorum_is_a_majority_and_at_most_everybody() {
        for voters in 1..=5000 {
            assert!((majority(voters)..=voters).contains(&fast_quorum(voters)));
        }
    }
}
