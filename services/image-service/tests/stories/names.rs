//! Names as movable pointers: pulled again, tagged, renamed, taken away, and all of that at once.

use contract::{
    ErrorCode,
    host::HostState,
    image::{List, Pull, Push, Rename, Tag},
};
use futures::future::join_all;
use serde_json::json;
use testkit::wait_until;

use crate::{
    deletes::insert_vm,
    fake_host::{FakeHost, digest},
    lab::{BOUND, Lab, count, image_of, registry},
};

#[tokio::test]
async fn a_digest_that_is_here_only_gets_a_name() {
    let lab = Lab::start().await;
    let source = registry("debian");
    let first = image_of(&lab.pull(&source, "debian").await.unwrap());
    // A mirror has the same.
    lab.host.push(&registry("mirror"), &source);
    let second = image_of(&lab.pull(&registry("mirror"), "stable").await.unwrap());
    assert_eq!((second.id, second.name.as_str(), second.names.len()), (first.id, "stable", 2));
    assert_eq!((lab.host.asked(&source), lab.host.asked(&registry("mirror"))), (1, 0));
    // Each name tells where it is from.
    assert_eq!((first.source, second.source), (source.clone(), registry("mirror")));
    let rename = json!({ "from": "stable", "to": "steady", "wait": true });
    assert_eq!(image_of(&lab.call::<Rename>(rename, None).await.unwrap()).source, registry("mirror"));
    let listed = lab.call::<List>(json!({}), None).await.unwrap().images;
    let sources: Vec<_> = listed.iter().map(|image| (image.name.as_str(), image.source.clone())).collect();
    assert_eq!(sources, [("debian", source.clone()), ("steady", registry("mirror"))]);
    // One name less, and the image stays; with the last name it goes.
    assert_eq!(lab.delete("debian").await.unwrap().result.unwrap()["deleted"], json!(false));
    assert_eq!(lab.image("steady").await.unwrap().id, first.id);
    assert_eq!(lab.delete("steady").await.unwrap().result.unwrap()["deleted"], json!(true));
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_second_host_gets_a_replica_of_the_same_image() {
    let lab = Lab::start().await;
    let other = FakeHost::start(&lab.bus, "h2").await;
    lab.registry.put("h2", HostState::Up, 1024);
    let on = |host: &str| json!({ "source": { "registry": registry("debian") }, "name": "debian", "host": host, "wait": true });
    let first = image_of(&lab.call::<Pull>(on("h1"), None).await.unwrap());
    let both = image_of(&lab.call::<Pull>(on("h2"), None).await.unwrap());
    assert_eq!((both.id, both.hosts.len()), (first.id, 2));
    assert_eq!((lab.host.images(), other.images()), (vec![first.id], vec![first.id]));
    // A third time is nothing.
    assert_eq!(image_of(&lab.call::<Pull>(on("h2"), None).await.unwrap()), both);
    assert_eq!(other.asked(&registry("debian")), 1);
    lab.delete("debian").await.unwrap();
    assert_eq!(other.images(), []);
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_name_follows_its_source_and_vms_keep_their_image() {
    let lab = Lab::start().await;
    let source = registry("debian");
    let newer = || async {
        let request =
            json!({ "source": { "registry": registry("debian") }, "name": "debian", "if_newer": true, "wait": true });
        image_of(&lab.call::<Pull>(request, None).await.unwrap())
    };
    let old = newer().await;
    assert_eq!(newer().await, old);
    let sql = lab.sql().await;
    insert_vm(&sql, "web", old.id).await;
    lab.host.push(&source, "of today");
    assert_eq!(lab.pull(&source, "debian").await.unwrap_err().code, ErrorCode::AlreadyExists);
    let new = newer().await;
    assert_eq!((new.digest.clone(), lab.image("debian").await.unwrap().id), (digest("of today"), new.id));
    assert_ne!(new.id, old.id);
    // What the VM uses is there, by its digest, without a name.
    let unnamed = lab.image(&old.digest).await.unwrap();
    assert_eq!((unnamed.id, unnamed.names.len()), (old.id, 0));
    assert_eq!(lab.call::<List>(json!({}), None).await.unwrap().images.len(), 1);
    assert_eq!(lab.call::<List>(json!({ "all": true }), None).await.unwrap().images.len(), 2);
    assert_eq!(lab.delete(&old.digest).await.unwrap_err().code, ErrorCode::FailedPrecondition);
    sql.execute("delete from vm.vm", &[]).await.unwrap();
    lab.delete(unnamed.name.as_str()).await.unwrap();
    lab.delete("debian").await.unwrap();
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn of_two_pulls_that_follow_a_source_the_later_decides_whichever_ends_last() {
    let lab = Lab::start().await;
    let source = registry("app");
    let newer = |wait: bool| json!({ "source": { "registry": registry("app") }, "name": "app", "if_newer": true, "wait": wait });
    let first = image_of(&lab.call::<Pull>(newer(true), None).await.unwrap());
    // The tag moves while a pull downloads what it meant.
    lab.host.push(&source, "of noon");
    lab.host.block(&source);
    let slow = lab.call::<Pull>(newer(false), None).await.unwrap();
    wait_until("its download", BOUND, async || (lab.host.asked(&source) >= 2).then_some(())).await;
    lab.host.push(&registry("copy"), "of the evening");
    let evening = image_of(&lab.pull(&registry("copy"), "copy").await.unwrap());
    lab.host.push(&source, "of the evening");
    let quick = image_of(&lab.call::<Pull>(newer(true), None).await.unwrap());
    assert_eq!((quick.id, quick.digest), (evening.id, digest("of the evening")));
    lab.host.release(&source);
    let slow = lab.ended(slow.id).await;
    // It tells what the name means, and leaves nothing of what it downloaded.
    assert_eq!(image_of(&slow).id, evening.id);
    assert_eq!(lab.image("app").await.unwrap().id, evening.id);
    assert_eq!(lab.host.staging(), []);
    for image in [&first.digest, "app", "copy"] {
        lab.delete(image).await.unwrap();
    }
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn images_with_much_to_run_are_listed_in_pages_a_message_can_hold() {
    let lab = Lab::start().await;
    for n in 0..20 {
        lab.pull(&registry(&format!("image-{n}")), &format!("image-{n:02}")).await.unwrap();
    }
    let sql = lab.sql().await;
    let config = json!({ "env": [format!("PADDING={}", "x".repeat(60_000))] });
    sql.execute("update image.image set config = $1", &[&config]).await.unwrap();
    let mut names: Vec<String> = Vec::new();
    loop {
        let page = lab.call::<List>(json!({ "after": names.last() }), None).await.unwrap();
        names.extend(page.images.iter().map(|image| image.name.to_string()));
        if !page.more {
            break;
        }
    }
    assert_eq!(names, (0..20).map(|n| format!("image-{n:02}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn tags_renames_and_references() {
    let lab = Lab::start().await;
    let debian = image_of(&lab.pull(&registry("debian"), "debian").await.unwrap());
    let alpine = image_of(&lab.pull(&registry("alpine"), "alpine").await.unwrap());
    let tag =
        |image: &str, name: &str, replace| json!({ "image": image, "name": name, "replace": replace, "wait": true });
    // Repeated by its key, and asked again.
    for key in [Some("a"), Some("a"), None] {
        let tagged = image_of(&lab.call::<Tag>(tag("debian", "base", false), key).await.unwrap());
        assert_eq!((tagged.id, tagged.name.as_str()), (debian.id, "base"));
    }
    let taken = lab.call::<Tag>(tag(&alpine.digest[..20], "base", false), None).await.unwrap_err();
    assert_eq!(taken.code, ErrorCode::AlreadyExists);
    lab.call::<Tag>(tag(&alpine.digest[..20], "base", true), None).await.unwrap();
    assert_eq!(lab.image("base").await.unwrap().id, alpine.id);
    assert_eq!(lab.call::<Tag>(tag("nope", "x", false), None).await.unwrap_err().code, ErrorCode::NotFound);

    let rename = |from: &str, to: &str| json!({ "from": from, "to": to, "wait": true });
    for key in [Some("r"), Some("r")] {
        let renamed = image_of(&lab.call::<Rename>(rename("debian", "bookworm"), key).await.unwrap());
        assert_eq!((renamed.id, renamed.names.len()), (debian.id, 1));
    }
    let refused = |from: &str, to: &str| lab.call::<Rename>(serde_json::from_value(rename(from, to)).unwrap(), None);
    assert_eq!(refused("debian", "x").await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(refused("base", "bookworm").await.unwrap_err().code, ErrorCode::AlreadyExists);
    assert_eq!(refused("base", "base").await.unwrap_err().code, ErrorCode::InvalidArgument);

    let digits = &debian.digest["sha256:".len()..];
    for reference in [&debian.digest, &debian.digest[..15], digits, &digits[..8], &debian.id.to_string()] {
        assert_eq!(lab.image(reference).await.unwrap().id, debian.id, "{reference}");
    }
    for reference in ["sha256:", &digits[..7], "sha256:%", "________", "sha256:________"] {
        assert_eq!(lab.image(reference).await.unwrap_err().code, ErrorCode::NotFound, "{reference}");
    }
    // Ids begin with the time: both were made in the same minute.
    let sql = lab.sql().await;
    sql.execute("update image.image set digest = 'sha256:0123456789' || id where true", &[]).await.unwrap();
    assert_eq!(lab.image("sha256:0123456789").await.unwrap_err().code, ErrorCode::InvalidArgument);
    for id in [alpine.id, debian.id] {
        lab.delete(&id.to_string()).await.unwrap();
    }
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn sixteen_pulls_of_eight_images_with_two_names_each_at_once() {
    let lab = Lab::start().await;
    let all: Vec<_> = (0..16).map(|n| (registry(&format!("i{}", n % 8)), format!("n{n}"))).collect();
    let ends = join_all(all.iter().map(|(source, name)| lab.pull(source, name))).await;
    for (end, (source, name)) in ends.into_iter().zip(&all) {
        let image = image_of(&end.unwrap());
        assert_eq!((&image.digest, image.name.as_str()), (&digest(source), name.as_str()));
        let shown = lab.image(name).await.unwrap();
        assert_eq!((shown.id, shown.names.len()), (image.id, 2), "{name}");
    }
    assert_eq!((lab.host.images().len(), lab.host.staging().len()), (8, 0));
    // And eight names that two images each want: one winner a name, whose digest it is.
    let all: Vec<_> = (0..16).map(|n| (registry(&format!("j{n}")), format!("m{}", n % 8))).collect();
    let ends = join_all(all.iter().map(|(source, name)| lab.pull(source, name))).await;
    let mut won = 0;
    for (end, (source, name)) in ends.into_iter().zip(&all) {
        match end {
            Ok(_) => {
                won += 1;
                assert_eq!(lab.image(name).await.unwrap().digest, digest(source));
            }
            Err(error) => assert_eq!(error.code, ErrorCode::AlreadyExists, "{error}"),
        }
    }
    assert_eq!((won, lab.host.images().len(), lab.host.staging().len()), (8, 16, 0));
    for name in (0..16).map(|n| format!("n{n}")).chain((0..8).map(|n| format!("m{n}"))) {
        lab.delete(&name).await.unwrap();
    }
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn pulls_tags_renames_and_removals_of_one_name_at_once_leave_it_whole() {
    let lab = Lab::start().await;
    lab.pull(&registry("other"), "other").await.unwrap();
    for round in 0..4 {
        let source = registry(&format!("r{round}"));
        let newer = json!({ "source": { "registry": source }, "name": "x", "if_newer": true, "wait": true });
        let (pulled, again, tagged, away, back, removed) = tokio::join!(
            lab.pull(&source, "x"),
            lab.call::<Pull>(newer, None),
            lab.call::<Tag>(json!({ "image": "other", "name": "x", "replace": true, "wait": true }), None),
            lab.call::<Rename>(json!({ "from": "x", "to": "y", "wait": true }), None),
            lab.call::<Rename>(json!({ "from": "y", "to": "x", "wait": true }), None),
            lab.delete("x"),
        );
        for end in [pulled, again, tagged, away, back, removed] {
            let known = [ErrorCode::AlreadyExists, ErrorCode::NotFound, ErrorCode::Aborted];
            assert!(end.as_ref().err().is_none_or(|error| known.contains(&error.code)), "{end:?}");
        }
    }
    let sql = lab.sql().await;
    let lost = "select count(*) from image.name n where not exists \
         (select from image.replica r where r.image_id = n.image_id)";
    assert_eq!(count(&sql, lost).await, 0);
    for image in lab.call::<List>(json!({ "all": true }), None).await.unwrap().images {
        drop(lab.delete(&image.id.to_string()).await);
    }
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_request_that_comes_again_is_answered_before_its_words_are_looked_up() {
    let lab = Lab::start().await;
    let debian = image_of(&lab.pull(&registry("debian"), "debian").await.unwrap());
    let tag = json!({ "image": &debian.digest[..19], "name": "base", "wait": true });
    let push = json!({ "image": &debian.digest[..19], "reference": registry("out"), "wait": true });
    let tagged = lab.call::<Tag>(tag.clone(), Some("t")).await.unwrap();
    let pushed = lab.call::<Push>(push.clone(), Some("p")).await.unwrap();
    // Another image begins with these digits now.
    let sql = lab.sql().await;
    let twin = "insert into image.image (id, digest, source, architecture, rootfs_bytes, config) \
         select gen_random_uuid(), substr(digest, 1, 30) || 'other', source, architecture, rootfs_bytes, config from image.image";
    sql.execute(twin, &[]).await.unwrap();
    assert_eq!(lab.call::<Tag>(tag.clone(), None).await.unwrap_err().code, ErrorCode::InvalidArgument);
    assert_eq!(lab.call::<Tag>(tag, Some("t")).await.unwrap(), tagged);
    assert_eq!(lab.call::<Push>(push, Some("p")).await.unwrap(), pushed);
    let another = json!({ "image": "debian", "name": "base", "wait": true });
    assert_eq!(lab.call::<Tag>(another, Some("t")).await.unwrap_err().code, ErrorCode::InvalidArgument);
}
