//! Fibonacci numbers, exact for every n. Pure: no I/O, no state.
//!
//! F(0) = 0, F(1) = 1, F(n) = F(n-1) + F(n-2) (OEIS A000045), by three algorithms that answer
//! alike and cost very differently: some log n multiplications, n additions, F(n) additions.

use clap::ValueEnum;
use num_bigint::BigUint;

/// The largest n for which F(n) fits 64 bits, which is what the recursive algorithm counts in. Its
/// running time is out of reach long before: each step of n multiplies it by 1.6.
pub const RECURSIVE_LIMIT: u64 = 93;

/// How to compute a Fibonacci number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Algorithm {
    /// Two numbers doubled at a time: fast for every n
    FastDoubling,
    /// One addition for each step
    Iterative,
    /// The tutorial's, slow on purpose
    Recursive,
}

/// Computes F(n), exactly. Panics if it is to be computed recursively and n is over [`RECURSIVE_LIMIT`].
pub fn fib(n: u64, algorithm: Algorithm) -> BigUint {
    match algorithm {
        Algorithm::FastDoubling => fast_doubling(n),
        Algorithm::Iterative => iterative(n),
        Algorithm::Recursive => {
            assert!(n <= RECURSIVE_LIMIT, "recursive fib({n}) would overflow 64 bits");
            BigUint::from(recursive(n))
        }
    }
}

/// Computes F(n): from the top bit of n down, a = F(k) and b = F(k+1) become F(2k) and F(2k+1), and one
/// more where the bit is set: F(2k) = F(k)·(2·F(k+1) − F(k)), F(2k+1) = F(k)² + F(k+1)²
/// (Dijkstra, EWD654, "In honour of Fibonacci").
fn fast_doubling(n: u64) -> BigUint {
    let (mut a, mut b) = (BigUint::ZERO, BigUint::from(1u8));
    for bit in (0..u64::BITS - n.leading_zeros()).rev() {
        let even = &a * ((&b << 1u8) - &a);
        let odd = &a * &a + &b * &b;
        if n >> bit & 1 == 1 {
            b = even + &odd;
            a = odd;
        } else {
            a = even;
            b = odd;
        }
    }
    a
}

fn iterative(n: u64) -> BigUint {
    let (mut a, mut b) = (BigUint::ZERO, BigUint::from(1u8));
    for _ in 0..n {
        a += &b;
        std::mem::swap(&mut a, &mut b);
    }
    a
}

fn recursive(n: u64) -> u64 {
    match n {
        0 | 1 => n,
        _ => recursive(n - 1) + recursive(n - 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALGORITHMS: [Algorithm; 3] =
        [Algorithm::FastDoubling, Algorithm::Iterative, Algorithm::Recursive];

    /// OEIS A000045 and its b-file.
    const PUBLISHED: [(u64, &str); 14] = [
        (0, "0"),
        (1, "1"),
        (2, "1"),
        (3, "2"),
        (10, "55"),
        (30, "832040"),
        (46, "1836311903"),
        (47, "2971215073"),
        (92, "7540113804746346429"),
        (93, "12200160415121876738"),
        (94, "19740274219868223167"),
        (100, "354224848179261915075"),
        (200, "280571172992510140037611932413038677189525"),
        (300, "222232244629420445529739893461909967206666939096499764990979600"),
    ];

    #[test]
    fn published_values() {
        for (n, value) in PUBLISHED {
            for algorithm in ALGORITHMS {
                // The recursive one is too slow to test beyond the tutorial's 30.
                if algorithm != Algorithm::Recursive || n <= 30 {
                    assert_eq!(fib(n, algorithm).to_string(), value, "F({n}) {algorithm:?}");
                }
            }
        }
    }

    #[test]
    fn the_algorithms_agree() {
        for n in 0..=25 {
            assert_eq!(fib(n, Algorithm::FastDoubling), fib(n, Algorithm::Recursive), "F({n})");
        }
        for n in (0..2_000).chain([9_999, 10_000, 16_383, 16_384, 16_385]) {
            assert_eq!(fib(n, Algorithm::FastDoubling), fib(n, Algorithm::Iterative), "F({n})");
        }
    }

    #[test]
    fn a_thousand_has_209_digits_and_a_million_has_208988() {
        let thousand = fib(1_000, Algorithm::FastDoubling).to_string();
        assert_eq!(thousand.len(), 209);
        assert!(thousand.starts_with("43466557686937456435"));
        assert!(thousand.ends_with("76137795166849228875"));
        let million = fib(1_000_000, Algorithm::FastDoubling).to_string();
        assert_eq!(million.len(), 208_988);
        assert!(million.starts_with("19532821287077577316"));
        assert!(million.ends_with("68996526838242546875"));
    }

    #[test]
    #[should_panic(expected = "would overflow")]
    fn recursive_refuses_what_overflows() {
        fib(RECURSIVE_LIMIT + 1, Algorithm::Recursive);
    }
}
