//! A relay that looks: every tunnel event that passes, with what the exit could read of it.

use nostr::nips::nip44;
use nostr::{Event, Filter, Keys, Kind, PublicKey, RelayUrl};
use nws::message::{Message, Type, decode};

use super::client::{Client, KIND};
use super::soon;

/// What passed, and what the exit alone can read in it.
pub struct Seen {
    /// The event as relays have it.
    pub event: Event,
    /// The session key of the proxy that it is from or for.
    pub session: PublicKey,
    /// Its messages.
    pub messages: Vec<Message>,
}

impl Seen {
    /// The ports that this event asks to be connected to.
    pub fn asked(&self) -> impl Iterator<Item = u16> {
        self.messages.iter().filter(|message| message.kind == Type::Connect).filter_map(|message| message.port)
    }
}

/// See the module.
pub struct Spy {
    client: Client,
    exit: Keys,
}

impl Spy {
    /// Listens on the relay for what passes from and to an exit.
    pub async fn on(relay: &RelayUrl, exit: &Keys) -> Self {
        let mut client = Client::connect(relay).await;
        client.subscribe("all", Filter::new().kind(Kind::from(KIND))).await;
        Self { client, exit: exit.clone() }
    }

    /// The next event.
    pub async fn next(&mut self) -> Seen {
        let event = soon("an event", self.client.next_event()).await;
        let tagged = event.tags.public_keys().next().copied();
        let session = if event.pubkey == self.exit.public_key() { tagged.unwrap() } else { event.pubkey };
        let content = nip44::decrypt_to_bytes(self.exit.secret_key(), &session, &event.content).unwrap();
        Seen { event, session, messages: decode(&content).unwrap() }
    }

    /// All events until so many streams have been reset or ended by a `fin` of the exit's, or were refused.
    pub async fn until_ended(&mut self, streams: usize) -> Vec<Seen> {
        let mut ended = std::collections::HashSet::new();
        let mut all = Vec::new();
        while ended.len() < streams {
            let seen = self.next().await;
            if seen.event.pubkey == self.exit.public_key() {
                let ends = seen.messages.iter().filter(|message| message.fin || message.kind == Type::Reset);
                ended.extend(ends.map(|message| message.key));
            }
            all.push(seen);
        }
        all
    }
}
