//! Other people's text as HTML.

use std::fmt::Write as _;

use serde::Serialize;

use super::numbers::shortened;

/// Longer cells of tables are cut.
const CELL: usize = 600;

/// Text for the inside of an element or of a quoted attribute. What XML and HTML cannot hold becomes a replacement sign.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\t' | '\n' => out.push(letter),
            _ if letter.is_control() => out.push('\u{fffd}'),
            _ => out.push(letter),
        }
    }
    out
}

/// JSON for the inside of a `<script>`: no `<` that could end it.
pub(super) fn json(value: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(serde_json::to_string(value)?.replace('<', "\\u003c"))
}

/// A column's sort of content.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Text,
    /// Aligned to the right.
    Number,
    /// Long and less important.
    Detail,
    /// By its cells: numbers when all of them begin like one.
    Guess,
}

/// A table that scrolls by itself where it does not fit. Columns without a kind are guessed.
pub(super) fn table(header: &[&str], kinds: &[Column], rows: &[Vec<String>]) -> String {
    let numeric = |column: usize| {
        rows.iter().all(|row| row.get(column).is_some_and(|c| c.starts_with(|l: char| l.is_ascii_digit() || l == '–')))
    };
    let class = |column: usize| match kinds.get(column).copied().unwrap_or(Column::Guess) {
        Column::Number => " class=n",
        Column::Detail => " class=detail",
        Column::Guess if numeric(column) => " class=n",
        Column::Guess | Column::Text => "",
    };
    let mut html = String::from("<div class=scroll tabindex=0><table><thead><tr>");
    for (i, name) in header.iter().enumerate() {
        let _ = write!(html, "<th{}>{}</th>", class(i), escape(name));
    }
    html += "</tr></thead><tbody>";
    for row in rows {
        html += "<tr>";
        for (i, cell) in row.iter().enumerate() {
            let _ = write!(html, "<td{}>{}</td>", class(i), escape(&shortened(cell, CELL)));
        }
        html += "</tr>";
    }
    html + "</tbody></table></div>"
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "</script><script>alert('x')</script>\" onload=\"y\u{0}&";

    #[test]
    fn hostile_text_stays_text() {
        let escaped = escape(HOSTILE);
        assert!(!escaped.contains(['<', '>', '"', '\'', '\u{0}']), "{escaped}");
        assert!(escaped.starts_with("&lt;/script&gt;") && escaped.ends_with("&amp;"), "{escaped}");

        let row = vec![HOSTILE.to_owned(), "1".to_owned()];
        let table = table(&[HOSTILE, "n"], &[], &[row]);
        assert!(!table.contains("<script") && table.contains("<td class=n>1</td>"), "{table}");

        let json = json(&HOSTILE).unwrap();
        assert!(!json.contains('<'), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), HOSTILE);
    }
}
