//! Names from outside, without what steers a terminal, a page or a reader's eye.

/// Stands in for a character that is not shown.
pub(crate) const REPLACEMENT: char = '\u{fffd}';

/// The text on one line, without characters that are not to be seen but change what is.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if steers(c) { REPLACEMENT } else { c }).collect()
}

/// The same for what consists of lines.
pub(crate) fn clean_lines(text: &str) -> String {
    text.chars().map(|c| if c != '\n' && steers(c) { REPLACEMENT } else { c }).collect()
}

/// Control characters; marks that turn the direction of a line, after which it reads as something else; line
/// separators, and letters and blanks that nobody sees, with which two names look alike. XML's two that are no
/// characters.
pub(super) fn steers(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}'
                | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
                | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_letters_and_loses_what_steers() {
        assert_eq!(clean("GET /tee/größe/שלום"), "GET /tee/größe/שלום");
        assert_eq!(clean("a\u{1b}[31m\n\u{202e}b\u{0}"), "a\u{fffd}[31m\u{fffd}\u{fffd}b\u{fffd}");
        assert_eq!(clean_lines("a\nb\r"), "a\nb\u{fffd}");
        for unseen in
            "\u{34f}\u{115f}\u{1160}\u{17b5}\u{180e}\u{3164}\u{ffa0}\u{fff9}\u{e0001}\u{e0041}"
                .chars()
        {
            assert_eq!(clean(&unseen.to_string()), "\u{fffd}", "{unseen:?}");
        }
    }
}
