//! A request names its answer: whoever asks gets that kind or an error, and no other.

use super::{
    Done, GroupInfo, GroupRequest, Interest, JoinPoint, Renewed, SessionRequest, SessionView, SlotAnswer, SlotError,
    SlotRequest,
    group::{
        History, Join, Leave, MemberPage, Publish, PublishEphemeral, Published, ReadGroup, ReadHistory, ReadMembers,
        UpdateMember,
    },
    session::{
        Attach, Attached, ChangeSession, ConfirmDisplaced, CreateSession, Detach, EndSession, ReadSession, RecordJoin,
        RecordLeave, Renewal, Withdraw,
    },
};
use crate::{
    few::Few,
    id::{GroupName, SessionId},
};

/// A request of one slot, and the kind of its answer.
pub trait Ask: Send {
    /// What it is answered with.
    type Answer: Answer;
    /// As it travels.
    fn into_request(self) -> SlotRequest;
}

/// A request about one group; with the group's name it is an [`Ask`].
pub trait AskGroup: Into<GroupRequest> + Send {
    /// What it is answered with.
    type Answer: Answer;
}

/// A request about one session; with the session's id it is an [`Ask`].
pub trait AskSession: Into<SessionRequest> + Send {
    /// What it is answered with.
    type Answer: Answer;
}

/// A kind of answer.
pub trait Answer: Send + Sized {
    /// What the answer says, or the answer itself where it is of another kind: a mistake of the node that sent it.
    #[expect(
        clippy::result_large_err,
        reason = "the whole answer is told where it is of the wrong kind, which is rare"
    )]
    fn read(answer: SlotAnswer) -> Result<Self, SlotAnswer>;
}

impl<R: AskGroup> Ask for (GroupName, R) {
    type Answer = R::Answer;
    fn into_request(self) -> SlotRequest {
        SlotRequest::Group(self.0, self.1.into())
    }
}

impl<R: AskSession> Ask for (SessionId, R) {
    type Answer = R::Answer;
    fn into_request(self) -> SlotRequest {
        SlotRequest::Session(self.0, self.1.into())
    }
}

/// The gateway wants these groups' messages, all of one slot, from now on and since its positions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Register(pub Vec<Interest>);

/// The gateway has no subscriber of these groups, all of one slot, any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unregister(pub Vec<GroupName>);

/// The gateway still has these attachments, all of one slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Renew(pub Vec<Renewal>);

impl Ask for Register {
    type Answer = Vec<JoinPoint>;
    fn into_request(self) -> SlotRequest {
        SlotRequest::Register { interests: self.0 }
    }
}

impl Ask for Unregister {
    type Answer = Done;
    fn into_request(self) -> SlotRequest {
        SlotRequest::Unregister { groups: self.0 }
    }
}

impl Ask for Renew {
    type Answer = Renewed;
    fn into_request(self) -> SlotRequest {
        SlotRequest::Renew { attachments: self.0 }
    }
}

macro_rules! asks {
    ($about:ident, $enum:ident: $($request:ident => $answer:ty,)*) => {$(
        impl From<$request> for $enum {
            fn from(request: $request) -> Self {
                Self::$request(request)
            }
        }
        impl $about for $request {
            type Answer = $answer;
        }
    )*};
}

asks!(AskGroup, GroupRequest:
    Publish => Few<Result<Published, SlotError>>,
    Join => JoinPoint,
    Leave => Done,
    UpdateMember => Done,
    ReadHistory => History,
    ReadMembers => MemberPage,
    ReadGroup => Option<GroupInfo>,
    PublishEphemeral => Done,
);

asks!(AskSession, SessionRequest:
    CreateSession => SessionView,
    ReadSession => SessionView,
    ChangeSession => SessionView,
    EndSession => Done,
    Attach => Attached,
    Detach => Done,
    Withdraw => Done,
    ConfirmDisplaced => Done,
    RecordJoin => Done,
    RecordLeave => Done,
);

macro_rules! answers {
    ($($variant:ident($answer:ty),)*) => {$(
        impl From<$answer> for SlotAnswer {
            fn from(answer: $answer) -> Self {
                Self::$variant(answer)
            }
        }
        impl Answer for $answer {
            fn read(answer: SlotAnswer) -> Result<Self, SlotAnswer> {
                match answer {
                    SlotAnswer::$variant(answer) => Ok(answer),
                    other => Err(other),
                }
            }
        }
    )*};
}

answers! {
    Registered(Vec<JoinPoint>),
    Published(Few<Result<Published, SlotError>>),
    Joined(JoinPoint),
    History(History),
    Members(MemberPage),
    Group(Option<GroupInfo>),
    Session(SessionView),
    Attached(Attached),
    Renewed(Renewed),
    Done(Done),
}
