//! Huffman's code for strings in header blocks (RFC 7541 5.2 and appendix B).

use std::sync::LazyLock;

/// How long each byte's code is, and the end's (appendix B). The code is canonical, so the lengths say it all: shorter codes come
/// first, and of the same length the lower byte's.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The symbol that ends a string; it must not stand in one.
const END: usize = 256;

/// What four bits lead to.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    next: u8,
    byte: u8,
    flags: u8,
}

/// The step ends a byte's code.
const BYTE: u8 = 1;
/// No code goes on like that.
const WRONG: u8 = 2;
/// A string may end after the step: what is left is padding.
const MAY_END: u8 = 4;

/// From each place inside the code's tree, what each four bits lead to; place 0 is the beginning.
static STEPS: LazyLock<Vec<[Step; 16]>> = LazyLock::new(steps);

/// A node of the tree: where 0 and 1 lead.
#[derive(Clone, Copy)]
enum Way {
    Place(usize),
    Symbol(usize),
}

fn steps() -> Vec<[Step; 16]> {
    let mut order: Vec<usize> = (0..LENGTHS.len()).collect();
    order.sort_by_key(|symbol| (LENGTHS[*symbol], *symbol));
    let mut tree: Vec<[Option<Way>; 2]> = vec![[None; 2]];
    let (mut code, mut length) = (0u32, LENGTHS[order[0]]);
    // Places that nothing but ones leads to, less than eight of them: what padding may consist of.
    let mut padding = vec![0];
    for (n, symbol) in order.into_iter().enumerate() {
        if n > 0 {
            code = (code + 1) << (LENGTHS[symbol] - length);
        }
        length = LENGTHS[symbol];
        let mut place = 0;
        for bit in (0..length).rev() {
            let one = (code >> bit & 1) as usize;
            if bit == 0 {
                tree[place][one] = Some(Way::Symbol(symbol));
                break;
            }
            place = match tree[place][one] {
                Some(Way::Place(next)) => next,
                _ => {
                    tree.push([None; 2]);
                    let next = tree.len() - 1;
                    tree[place][one] = Some(Way::Place(next));
                    next
                }
            };
        }
    }
    let mut place = 0;
    while let (Some(Way::Place(next)), true) = (tree[place][1], padding.len() < 8) {
        padding.push(next);
        place = next;
    }
    let walk = |from: usize, bits: usize| {
        let mut step = Step::default();
        let mut place = from;
        for bit in (0..4).rev() {
            match tree[place][bits >> bit & 1] {
                Some(Way::Place(next)) => place = next,
                Some(Way::Symbol(END)) | None => {
                    step.flags = WRONG;
                    return step;
                }
                Some(Way::Symbol(symbol)) => {
                    step.byte = symbol as u8;
                    step.flags = BYTE;
                    place = 0;
                }
            }
        }
        if padding.contains(&place) {
            step.flags |= MAY_END;
        }
        // A tree of 257 leaves has 256 other places.
        step.next = place as u8;
        step
    };
    (0..tree.len())
        .map(|place| std::array::from_fn(|bits| walk(place, bits)))
        .collect()
}

/// Appends what `bytes` stand for; `None` when they stand for nothing.
pub(super) fn decode(bytes: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let steps = &**STEPS;
    let (mut place, mut may_end) = (0u8, true);
    for byte in bytes {
        for bits in [byte >> 4, byte & 15] {
            let step = steps[usize::from(place)][usize::from(bits)];
            if step.flags & WRONG != 0 {
                return None;
            }
            if step.flags & BYTE != 0 {
                out.push(step.byte);
            }
            may_end = step.flags & MAY_END != 0;
            place = step.next;
        }
    }
    may_end.then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        decode(bytes, &mut out).map(|()| out)
    }

    #[test]
    fn the_examples_of_the_rfc() {
        // Appendix C.4 and C.6.
        for (hex, text) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95ba97d7f", "custom-key"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            ("6402", "302"),
            ("aec3771a4b", "private"),
            (
                "d07abe941054d444a8200595040b8166e082a62d1bff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            ("9d29ad171863c78f0b97c8e9ae82ae43d3", "https://www.example.com"),
            (
                "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
                "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            ),
        ] {
            let bytes: Vec<u8> = (0..hex.len() / 2)
                .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hexadecimal"))
                .collect();
            assert_eq!(decoded(&bytes), Some(text.as_bytes().to_vec()), "{text}");
        }
    }

    #[test]
    fn every_byte_has_its_code_and_padding_is_short_ones() {
        assert_eq!(STEPS.len(), 256);
        assert_eq!(decoded(b""), Some(vec![]));
        // "0" is 00000: the rest must be ones, and less than eight of them.
        assert_eq!(decoded(&[0b0000_0111]), Some(b"0".to_vec()));
        assert_eq!(decoded(&[0b0000_0011]), None);
        assert_eq!(decoded(&[0b0000_0111, 0xff]), None);
        // The end's own code: thirty ones.
        assert_eq!(decoded(&[0xff; 4]), None);
        assert_eq!(decoded(&[0xff]), None);
    }
}
