//! The rounds of SHA-256 (FIPS 180-4, 6.2.2) for words of any width, written once.
//!
//! Whoever expands [`block`] has these functions on its words in scope: `add`, `k` (a round constant), `choose`, `majority`, `sum0`, `sum1`,
//! `sigma0` and `sigma1`. A macro rather than a trait, because a function can be inlined only where its instruction set is enabled.

/// The state after one block: `$state` is eight words, `$w` the block's sixteen.
macro_rules! block {
    ($state:expr, $w:expr) => {{
        use super::rounds::{round, sixteen};
        let before = $state;
        let mut w = $w;
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = before;
        sixteen!(a b c d e f g h, w, 0, extend);
        sixteen!(a b c d e f g h, w, 16, extend);
        sixteen!(a b c d e f g h, w, 32, extend);
        sixteen!(a b c d e f g h, w, 48, last);
        [
            add(before[0], a),
            add(before[1], b),
            add(before[2], c),
            add(before[3], d),
            add(before[4], e),
            add(before[5], f),
            add(before[6], g),
            add(before[7], h),
        ]
    }};
}

/// Rounds `$t` to `$t + 15`; after each its word is replaced by the one needed sixteen rounds later, but in the last sixteen.
macro_rules! sixteen {
    ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident, $w:ident, $t:literal, $then:ident) => {
        round!($a $b $c $d $e $f $g $h, $w, $t, 0 1 9 14, $then);
        round!($h $a $b $c $d $e $f $g, $w, $t, 1 2 10 15, $then);
        round!($g $h $a $b $c $d $e $f, $w, $t, 2 3 11 0, $then);
        round!($f $g $h $a $b $c $d $e, $w, $t, 3 4 12 1, $then);
        round!($e $f $g $h $a $b $c $d, $w, $t, 4 5 13 2, $then);
        round!($d $e $f $g $h $a $b $c, $w, $t, 5 6 14 3, $then);
        round!($c $d $e $f $g $h $a $b, $w, $t, 6 7 15 4, $then);
        round!($b $c $d $e $f $g $h $a, $w, $t, 7 8 0 5, $then);
        round!($a $b $c $d $e $f $g $h, $w, $t, 8 9 1 6, $then);
        round!($h $a $b $c $d $e $f $g, $w, $t, 9 10 2 7, $then);
        round!($g $h $a $b $c $d $e $f, $w, $t, 10 11 3 8, $then);
        round!($f $g $h $a $b $c $d $e, $w, $t, 11 12 4 9, $then);
        round!($e $f $g $h $a $b $c $d, $w, $t, 12 13 5 10, $then);
        round!($d $e $f $g $h $a $b $c, $w, $t, 13 14 6 11, $then);
        round!($c $d $e $f $g $h $a $b, $w, $t, 14 15 7 12, $then);
        round!($b $c $d $e $f $g $h $a, $w, $t, 15 0 8 13, $then);
    };
}

macro_rules! round {
    ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident, $w:ident, $t:literal, $i:literal $j:literal $k:literal $l:literal, extend) => {
        round!($a $b $c $d $e $f $g $h, $w, $t, $i $j $k $l, last);
        $w[$i] = add(add($w[$i], sigma0($w[$j])), add($w[$k], sigma1($w[$l])));
    };
    ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident, $w:ident, $t:literal, $i:literal $j:literal $k:literal $l:literal, last) => {
        let t = add(add(add($h, add($w[$i], k($t + $i))), choose($e, $f, $g)), sum1($e));
        $d = add($d, t);
        $h = add(t, add(sum0($a), majority($a, $b, $c)));
    };
}

pub(super) use {block, round, sixteen};
