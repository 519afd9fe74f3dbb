//! English for captions: the right article before a name.

/// "a red apple on a teal background".
pub(crate) fn plain(sprite: &str, color: &str) -> String {
    format!("{} on {} background", with_article(sprite), with_article(color))
}

/// "a red apple on a background fading from teal to pink".
pub(crate) fn gradient(sprite: &str, from: &str, to: &str) -> String {
    format!("{} on a background fading from {from} to {to}", with_article(sprite))
}

/// Names of stuff and of games, which take no article.
const UNCOUNTABLE: [&str; 13] = [
    "bacon",
    "bowling",
    "bread",
    "broccoli",
    "fire",
    "garlic",
    "ice",
    "luggage",
    "popcorn",
    "spaghetti",
    "sushi",
    "tennis",
    "yarn",
];

/// "a red apple", "an orange", and "grapes" or "bread" without an article.
fn with_article(name: &str) -> String {
    if UNCOUNTABLE.contains(&name) || is_plural(name) {
        name.to_owned()
    } else if starts_with_vowel_sound(name) {
        format!("an {name}")
    } else {
        format!("a {name}")
    }
}

/// Whether the name stands for several things, going by its last word.
fn is_plural(name: &str) -> bool {
    let last = name.rsplit(' ').next().unwrap_or(name);
    let singular = ["ss", "us", "is"].iter().any(|ending| last.ends_with(ending)) || last == "lens";
    last.ends_with('s') && !singular
}

/// Sound, not spelling, chooses the article: "a unicorn", "an hourglass".
fn starts_with_vowel_sound(name: &str) -> bool {
    let spelled_vowel_said_consonant = ["uni", "uku", "ewe", "eu", "one"];
    let silent_first_letter = ["hour", "honest"];
    if silent_first_letter.iter().any(|start| name.starts_with(start)) {
        return true;
    }
    name.starts_with(['a', 'e', 'i', 'o', 'u'])
        && !spelled_vowel_said_consonant.iter().any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn articles_follow_the_sound() {
        for (name, expected) in [
            ("red apple", "a red apple"),
            ("orange", "an orange"),
            ("umbrella", "an umbrella"),
            ("unicorn", "a unicorn"),
            ("ewe", "a ewe"),
            ("hourglass", "an hourglass"),
            ("octopus", "an octopus"),
            ("grapes", "grapes"),
            ("french fries", "french fries"),
            ("compass", "a compass"),
            ("tennis", "tennis"),
            ("soft ice cream", "a soft ice cream"),
        ] {
            assert_eq!(with_article(name), expected);
        }
    }

    #[test]
    fn captions_name_sprite_and_background() {
        assert_eq!(plain("red apple", "orange"), "a red apple on an orange background");
        assert_eq!(gradient("anchor", "teal", "pink"), "an anchor on a background fading from teal to pink");
    }
}
