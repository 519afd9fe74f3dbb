//! The origin as a whole: its list, its names, and its memory.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::Duration;

use super::{address_of, get_row, host_of, origin_of};
use crate::behaviour::Behaviour as B;
use crate::origin::HERE;
use crate::rows::TRAP;
use crate::{Mix, Options, Origin};

/// Asks the name server; the code of its answer, and the addresses in it.
fn ask(origin: &Origin, id: u16, name: &str, kind: u8) -> Option<(u8, Vec<Vec<u8>>)> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, kind, 0, 1]);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.send_to(&message, origin.nameserver().unwrap()).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).ok()?;
    assert_eq!((&answer[..2], &answer[12..message.len()]), (&message[..2], &message[12..]), "{name}");
    let (mut rest, mut addresses) = (&answer[message.len()..length], Vec::new());
    for _ in 0..answer[7] {
        let length = usize::from(rest[11]);
        addresses.push(rest[12..12 + length].to_vec());
        rest = &rest[12 + length..];
    }
    assert!(rest.is_empty());
    Some((answer[3] & 0x0f, addresses))
}

#[test]
fn names_lead_where_they_are_said_to() {
    let kinds = [B::DnsJpeg, B::DnsNoName, B::DnsFailure, B::DnsSilence, B::DnsPrivate, B::DnsMixed, B::DnsRebinding];
    let origin = origin_of(&kinds);
    let (here, trap) = (HERE.octets().to_vec(), TRAP.octets().to_vec());
    for (row, behaviour) in kinds.into_iter().enumerate() {
        let name = host_of(&origin, row);
        assert!(origin.rows()[row].url.starts_with(&format!("http://{name}:")));
        let first = ask(&origin, 7, &name, 1);
        match behaviour {
            B::DnsJpeg => {
                assert_eq!(first, Some((0, vec![here.clone()])));
                assert_eq!(ask(&origin, 8, &name.to_uppercase(), 28), Some((0, Vec::new())));
                assert_eq!(origin.served().questions[&name], (1, 1));
            }
            B::DnsNoName => assert_eq!(first, Some((3, Vec::new()))),
            B::DnsFailure => assert_eq!(first, Some((2, Vec::new()))),
            B::DnsSilence => assert_eq!(first, None),
            B::DnsPrivate => {
                let all = [first.unwrap().1, ask(&origin, 8, &name, 28).unwrap().1].concat();
                assert!(all.len() == 1 && !all.contains(&here));
            }
            B::DnsMixed => {
                let mut addresses = first.unwrap().1;
                addresses.sort();
                assert_eq!(addresses, [trap.clone(), here.clone()]);
            }
            _ => {
                assert_eq!(first, Some((0, vec![here.clone()])));
                assert_eq!(ask(&origin, 7, &name, 1), first, "the same message once more");
                assert_eq!(ask(&origin, 8, &name, 1), Some((0, vec![trap.clone()])));
                origin.forget_names();
                assert_eq!(ask(&origin, 9, &name, 1), first);
                assert_eq!(origin.served().questions[&name], (4, 0));
            }
        }
    }
}

#[test]
fn after_a_reset_everything_happens_once_more() {
    let origin = origin_of(&[B::ServerErrorOnce, B::Jpeg]);
    for _ in 0..2 {
        assert!(get_row(&origin, 0).status() >= 500);
        assert_eq!(get_row(&origin, 0).status(), 200);
        assert_eq!(get_row(&origin, 1).status(), 200);
        let served = origin.served();
        assert_eq!((&served.requests[..], &served.pictures[..], served.all_requests), (&[2, 1][..], &[1, 1][..], 3));
        assert_eq!((served.connections, served.most_at_a_time[&host_of(&origin, 1)]), (3, 1));
        origin.reset();
    }
}

#[test]
fn the_list_and_the_keys_are_what_our_reader_takes() {
    let origin = Origin::start(Options { urls: 300, mix: Mix::Each, ..Options::default() }).unwrap();
    let list = origin.list_tsv();
    let mut lines = list.lines();
    assert_eq!(lines.next(), Some("url\tcaption\tsha256"));
    assert_eq!(lines.clone().count(), 300);
    for (line, row) in lines.zip(origin.rows()) {
        let fields: Vec<&str> = line.split('\t').collect();
        assert_eq!(fields, [&row.url, &row.caption, row.sha256.as_deref().unwrap_or_default()]);
    }
    let folder = std::env::temp_dir().join(format!("chaos \"keys\" {}", std::process::id()));
    let keys = origin.manifest_keys(&folder).unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("list.tsv")).unwrap(), list);
    assert!(std::fs::read_to_string(folder.join("authority.pem")).unwrap().starts_with("-----BEGIN CERTIFICATE"));
    std::fs::remove_dir_all(&folder).unwrap();
    let names: Vec<&str> = keys.lines().map(|line| line.split_once(" = ").unwrap().0).collect();
    let all =
        ["urls", "connect_to", "allow_networks", "nameservers", "trusted_certificates", "robots_txt", "verify_hash"];
    assert_eq!(names, all);
    assert!(keys.contains("chaos \\\"keys\\\"") && keys.contains("allow_networks = [\"127.77.7.7/32\"]"), "{keys}");
}

#[tokio::test]
async fn it_may_be_used_and_dropped_anywhere_and_then_nobody_listens() {
    let origin = origin_of(&[B::Jpeg]);
    let address = address_of(&origin, &host_of(&origin, 0));
    assert!(TcpStream::connect(address).is_ok());
    drop(origin);
    // The last of its threads closes what it listens on.
    let mut looks = 0;
    while TcpStream::connect(address).is_ok() && looks < 1000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        looks += 1;
    }
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
