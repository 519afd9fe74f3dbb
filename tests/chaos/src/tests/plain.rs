//! Behaviours over HTTP/1.1.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use super::{address_of, connect, get, get_row, host_of, origin_of, request, target_of};
use crate::behaviour::{Behaviour as B, Expected};
use crate::picture::sha256;
use crate::rows::TRAP;

const STALLED: Option<ErrorKind> = Some(ErrorKind::WouldBlock);
const RESET: Option<ErrorKind> = Some(ErrorKind::ConnectionReset);

/// What is between chunk sizes, for as long as there are any.
fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|end| end == b"\r\n").unwrap();
        let size = std::str::from_utf8(&bytes[..end]).unwrap().split(';').next().unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 2 + size + 2..];
    }
}

#[test]
fn pictures_that_are_kept_come_as_they_are_expected() {
    let plain: Vec<B> = B::ALL.iter().copied().filter(|b| !b.needs_tls() && !b.needs_dns()).collect();
    let origin = origin_of(&plain);
    for (row, listed) in origin.rows().iter().enumerate().filter(|(_, row)| row.duplicate_of.is_none()) {
        let Expected::Kept { sha256: expected, width, height } = &listed.expected else { continue };
        if matches!(listed.behaviour, B::RedirectChain | B::RedirectHost) {
            continue;
        }
        if listed.behaviour.recovers() {
            let got = get_row(&origin, row);
            assert!(got.status() >= 400 || got.error.is_some(), "{:?}: {got:?}", listed.behaviour);
        }
        let got = get_row(&origin, row);
        assert_eq!(got.error, None, "{:?}", listed.behaviour);
        let mut body = got.body.clone();
        match listed.behaviour {
            B::Chunked => body = unchunked(&body),
            B::EarlyHints => {
                body.drain(..body.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4).for_each(drop);
            }
            B::Gzip => {
                body.clear();
                flate2::read::GzDecoder::new(&got.body[..]).read_to_end(&mut body).unwrap();
            }
            _ => {}
        }
        assert_eq!(sha256(&body), *expected, "{:?}: {}", listed.behaviour, got.head);
        let image = image::load_from_memory(&body).unwrap();
        assert_eq!((image.width(), image.height()), (*width, *height), "{:?}", listed.behaviour);
        assert_eq!(origin.served().pictures[row], 1, "{:?}", listed.behaviour);
    }
}

#[test]
fn refusals_say_what_they_are_said_to_say() {
    let cases = [
        (B::NotFound, 404, "", ""),
        (B::Gone, 410, "", ""),
        (B::Forbidden, 403, "", ""),
        (B::Unauthorised, 401, "", ""),
        (B::Unlawful, 451, "", ""),
        (B::Teapot, 418, "", ""),
        (B::ServerError, 500, "", ""),
        (B::Unavailable, 503, "", ""),
        (B::TooMany, 429, "", ""),
        (B::TooManyOnce, 429, "retry-after", "1"),
        (B::NoAi, 200, "x-robots-tag", "noai"),
        (B::NoAiForUs, 200, "x-robots-tag", "ferrotype: noai"),
        (B::NoAiForOthers, 200, "x-robots-tag", "otherbot: noai"),
        (B::TdmReserved, 200, "tdm-reservation", "1"),
        (B::TdmAllowed, 200, "tdm-reservation", "0"),
        (B::WrongType, 200, "content-type", "text/html; charset=utf-8"),
        (B::Html, 200, "content-type", "image/jpeg"),
        (B::Gzip, 200, "content-encoding", "gzip"),
        (B::GzipBomb, 200, "content-encoding", "gzip"),
        (B::LengthHuge, 200, "content-length", "10000000000"),
        (B::Endless, 200, "transfer-encoding", "chunked"),
    ];
    let origin = origin_of(&cases.map(|(behaviour, ..)| behaviour));
    for (row, (behaviour, status, name, value)) in cases.into_iter().enumerate() {
        assert_eq!(origin.rows()[row].behaviour, behaviour);
        let got = get_row(&origin, row);
        assert_eq!(got.status(), status, "{behaviour:?}");
        assert!(name.is_empty() || got.header(name) == Some(value), "{behaviour:?}: {}", got.head);
    }
}

#[test]
fn answers_break_off_as_they_are_said_to() {
    let cases = [
        (B::StallBeforeHeaders, false, STALLED),
        (B::StallInBody, true, STALLED),
        (B::Drip, true, None),
        (B::ResetBeforeHeaders, false, RESET),
        (B::ResetInBody, true, RESET),
        (B::Truncated, true, None),
        (B::ChunkedTruncated, true, None),
        (B::LengthTooLong, true, None),
        (B::LengthTooShort, true, None),
        (B::ChunkedGarbage, true, None),
        (B::GzipDamaged, true, None),
    ];
    // A drip is long; the others are looked at in whole.
    let origin = origin_of(&cases.map(|(behaviour, ..)| behaviour));
    for (row, (behaviour, has_head, error)) in cases.into_iter().enumerate().filter(|(_, case)| case.0 != B::Drip) {
        let got = get_row(&origin, row);
        assert_eq!((!got.head.is_empty(), got.error), (has_head, error), "{behaviour:?}");
        let whole = got.header("content-length").map(|length| length.parse::<usize>().unwrap());
        match behaviour {
            B::StallInBody | B::ResetInBody | B::Truncated => {
                assert_eq!(got.body.len(), whole.unwrap() / 2, "{behaviour:?}");
            }
            B::LengthTooLong => assert_eq!(got.body.len() + 1000, whole.unwrap()),
            B::LengthTooShort => assert_eq!(got.body.len() * 2 / 3, whole.unwrap()),
            B::ChunkedTruncated => assert!(!got.body.ends_with(b"0\r\n\r\n")),
            B::GzipDamaged => {
                let mut unpacked = Vec::new();
                assert_eq!(whole.unwrap(), got.body.len());
                assert!(flate2::read::GzDecoder::new(&got.body[..]).read_to_end(&mut unpacked).is_err());
            }
            _ => {}
        }
        assert_eq!(origin.served().pictures[row], 0, "{behaviour:?}");
    }
}

#[test]
fn a_drip_is_a_byte_now_and_then() {
    let origin = origin_of(&[B::Drip]);
    let host = host_of(&origin, 0);
    let mut stream = connect(address_of(&origin, &host));
    stream.write_all(&request(&host, &target_of(&origin, 0), "")).unwrap();
    let mut bytes = vec![0; 4096];
    assert!(stream.read(&mut bytes).unwrap() > 10);
    assert!((1..5).contains(&stream.read(&mut bytes).unwrap()));
}

#[test]
fn nobody_listens_where_connections_are_refused() {
    let origin = origin_of(&[B::ConnectionRefused]);
    let error = TcpStream::connect(address_of(&origin, &host_of(&origin, 0))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn redirects_lead_where_they_are_said_to() {
    let behaviours = [B::RedirectChain, B::RedirectHost, B::RedirectLoop, B::RedirectEndless, B::RedirectNowhere];
    let origin = origin_of(&behaviours);
    for (row, behaviour) in behaviours.into_iter().enumerate() {
        let (mut host, mut target) = (host_of(&origin, row), target_of(&origin, row));
        let mut hops = 0;
        let got = loop {
            let got = get(address_of(&origin, &host), &host, &target);
            if !matches!(got.status(), 301..=308) || hops == 10 || behaviour == B::RedirectNowhere {
                break got;
            }
            let Some(location) = got.header("location") else { break got };
            let (base, _) = target.rsplit_once('/').unwrap();
            if let Some((there, path)) = location.strip_prefix("http://").and_then(|rest| rest.split_once('/')) {
                if !there.ends_with(".test") {
                    break got;
                }
                (host, target) = (there.to_owned(), format!("/{path}"));
            } else {
                target = if location.starts_with('/') { location.to_owned() } else { format!("{base}/{location}") };
            }
            hops += 1;
        };
        match behaviour {
            B::RedirectChain => assert_eq!((hops, got.status()), (3, 200)),
            B::RedirectHost => assert_eq!((hops, got.status()), (1, 200)),
            B::RedirectNowhere => assert!((300..309).contains(&got.status()), "{got:?}"),
            _ => assert_eq!(hops, 10, "{behaviour:?}: {got:?}"),
        }
        assert_eq!(origin.served().requests[row], hops + 1, "{behaviour:?}");
    }
}

#[test]
fn a_connection_closes_under_a_new_picture_and_no_other() {
    let (mut behaviours, mut row) = (vec![B::KeepAliveClosed; 8], 0);
    behaviours.extend([B::Jpeg, B::NotFound]);
    let origin = origin_of(&behaviours);
    let ask = |stream: &mut TcpStream, of: usize| {
        let host = host_of(&origin, of);
        stream.write_all(&request(&host, &target_of(&origin, of), "")).unwrap();
        let mut bytes = vec![0; 1 << 16];
        stream.read(&mut bytes).unwrap_or(0)
    };
    let address = address_of(&origin, &host_of(&origin, 0));
    let (picture, absent) = (8, 9);
    let (mut right_away, mut later) = (0, 0);
    while row < 8 {
        origin.reset();
        let mut stream = connect(address);
        assert!(ask(&mut stream, row) > 0);
        // The end of a connection that closes right away comes a moment later, or under the next request.
        if ask(&mut stream, absent) == 0 {
            right_away += 1;
        } else {
            later += 1;
            assert_eq!(ask(&mut stream, picture), 0);
            assert!(ask(&mut connect(address), picture) > 0);
            assert_eq!(origin.served().requests[picture], 2);
        }
        row += 1;
    }
    assert!(right_away > 0 && later > 0, "{right_away} and {later}");
}

#[test]
fn robots_txt_is_where_it_is_needed_and_the_trap_counts() {
    let origin = origin_of(&[B::RobotsDisallowed, B::RobotsUnavailable, B::Jpeg]);
    let robots = |row| {
        let host = host_of(&origin, row);
        get(address_of(&origin, &host), &host, "/robots.txt")
    };
    assert!(String::from_utf8(robots(0).body).unwrap().contains("Disallow: /robots-disallowed/\n"));
    assert_eq!((robots(1).status(), robots(2).status()), (503, 404));
    let port = address_of(&origin, &host_of(&origin, 2)).port();
    drop(TcpStream::connect(SocketAddr::from((TRAP, port))).unwrap());
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
    let mut looks = 0;
    while origin.served().trapped == 0 && looks < 1000 {
        std::thread::yield_now();
        std::thread::sleep(std::time::Duration::from_millis(1));
        looks += 1;
    }
    assert_eq!(origin.served().trapped, 1);
    assert_eq!(origin.served().all_requests, 3);
}

#[test]
fn what_is_no_http_is_none_and_what_is_too_much_is_too_much() {
    let origin = origin_of(&[B::NotHttp, B::HugeHeaders, B::HugeHeaders, B::Empty, B::UnknownEncoding]);
    let rows = origin.rows();
    for (row, listed) in rows.iter().enumerate() {
        let got = get_row(&origin, row);
        match listed.behaviour {
            B::NotHttp => assert!(got.status() == 0 || got.header("content-type").is_none(), "{got:?}"),
            B::HugeHeaders => assert!(got.head.len() > 1 << 20),
            B::Empty => assert!(got.body.is_empty() && matches!(got.status(), 200 | 204)),
            _ => assert!(got.header("content-encoding").is_some()),
        }
    }
}
