//! Slurm's lists of nodes.

/// The first host of a list such as `node[003-007,9],gpu1`: `node003`. `None` where it is no such list.
pub(super) fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list.trim();
    while let Some(at) = rest.find([',', '[']) {
        let (name, more) = rest.split_at(at);
        host.push_str(name);
        let Some(bracket) = more.strip_prefix('[') else {
            rest = "";
            break;
        };
        let (numbers, after) = bracket.split_once(']')?;
        host.push_str(first_number(numbers)?);
        rest = after;
    }
    host.push_str(rest);
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    (!host.is_empty() && host.chars().all(is_name)).then_some(host)
}

fn first_number(numbers: &str) -> Option<&str> {
    let first = numbers.split([',', '-']).next()?.trim();
    (!first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit())).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::first_host;

    #[test]
    fn the_first_host_of_a_list() {
        for (list, expected) in [
            ("node1", Some("node1")),
            ("node1,node2", Some("node1")),
            ("node[003-007,9]", Some("node003")),
            ("node[9]", Some("node9")),
            ("gpu-a[01,03-04]-ib,gpu-b[1-2]", Some("gpu-a01-ib")),
            ("rack[1-2]node[07-12]", Some("rack1node07")),
            ("a.cluster.example,b", Some("a.cluster.example")),
            (" node5 ", Some("node5")),
            ("", None),
            (",node", None),
            ("node[", None),
            ("node[]", None),
            ("node[x-y]", None),
            ("node]", None),
            ("no de", None),
        ] {
            assert_eq!(first_host(list).as_deref(), expected, "{list}");
        }
    }
}
