// Tests of MSC4293, redact on kick and ban.
package tests

import (
	"encoding/json"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/matrix-org/complement"
	"github.com/matrix-org/complement/b"
	"github.com/matrix-org/complement/client"
	"github.com/matrix-org/complement/federation"
	"github.com/matrix-org/complement/helpers"
	"github.com/matrix-org/complement/match"
	"github.com/matrix-org/complement/must"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"
)

const flag = "org.matrix.msc4293.redact_events"

// remove kicks or bans somebody.
func remove(t *testing.T, moderator *client.CSAPI, roomID, how, userID string, body map[string]interface{}) *http.Response {
	t.Helper()
	wish := map[string]interface{}{"user_id": userID}
	for key, value := range body {
		wish[key] = value
	}
	return moderator.Do(t, "POST", []string{"_matrix", "client", "v3", "rooms", roomID, how}, client.WithJSONBody(t, wish))
}

func say(t *testing.T, user *client.CSAPI, roomID, text string) string {
	t.Helper()
	return user.SendEventSynced(t, roomID, b.Event{
		Type:    "m.room.message",
		Content: map[string]interface{}{"msgtype": "m.text", "body": text},
	})
}

// isRedactedBy tells whether an event, as the reader is shown it, was redacted by a member event of that sender.
func isRedactedBy(event gjson.Result, moderator string) bool {
	because := event.Get("unsigned.redacted_because")
	return len(event.Get("content").Map()) == 0 &&
		because.Get("type").Str == "m.room.member" && because.Get("sender").Str == moderator
}

// eventually waits for other servers to have heard of it.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if check() {
			return
		}
	}
	t.Fatalf("%s: not within 5 s", what)
}

func TestRedactOnKickAndBan(t *testing.T) {
	deployment := complement.Deploy(t, 2)
	defer deployment.Destroy(t)
	alice := deployment.Register(t, "hs1", helpers.RegistrationOpts{})
	bob := deployment.Register(t, "hs1", helpers.RegistrationOpts{})
	charlie := deployment.Register(t, "hs2", helpers.RegistrationOpts{})

	for _, how := range []string{"kick", "ban"} {
		for _, target := range []string{"local", "remote"} {
			t.Run("A flagged "+how+" of a "+target+" user redacts on every server", func(t *testing.T) {
				localUser := deployment.Register(t, "hs1", helpers.RegistrationOpts{})
				remoteUser := deployment.Register(t, "hs2", helpers.RegistrationOpts{})
				mallory := localUser
				if target == "remote" {
					mallory = remoteUser
				}
				roomID := alice.MustCreateRoom(t, map[string]interface{}{"preset": "public_chat"})
				bob.MustJoinRoom(t, roomID, nil)
				charlie.MustJoinRoom(t, roomID, []spec.ServerName{deployment.GetFullyQualifiedHomeserverName(t, "hs1")})
				mallory.MustJoinRoom(t, roomID, []spec.ServerName{deployment.GetFullyQualifiedHomeserverName(t, "hs1")})
				first := say(t, mallory, roomID, "spam")
				second := say(t, mallory, roomID, "more spam")
				for _, reader := range []*client.CSAPI{alice, charlie} {
					reader.MustSyncUntil(t, client.SyncReq{}, client.SyncTimelineHasEventID(roomID, second))
				}
				must.MatchSuccess(t, remove(t, alice, roomID, how, mallory.UserID, map[string]interface{}{flag: true, "reason": "spam"}))

				for _, eventID := range []string{first, second} {
					event := bob.MustGetEvent(t, roomID, eventID)
					must.Equal(t, isRedactedBy(event, alice.UserID), true, "redacted on hs1: "+event.Raw)
					must.MatchGJSON(t, event,
						match.JSONKeyEqual("unsigned.redacted_because.state_key", mallory.UserID),
						match.JSONKeyEqual("unsigned.redacted_because.content.reason", "spam"),
					)
					eventually(t, "redacted on hs2", func() bool {
						return isRedactedBy(charlie.MustGetEvent(t, roomID, eventID), alice.UserID)
					})
				}
				// No redaction event was needed for it.
				res := bob.MustDo(t, "GET", []string{"_matrix", "client", "v3", "rooms", roomID, "messages"},
					client.WithQueries(url.Values{"dir": {"b"}, "limit": {"100"}}))
				must.MatchResponse(t, res, match.HTTPResponse{JSON: []match.JSON{
					match.JSONArrayEach("chunk", func(event gjson.Result) error {
						must.NotEqual(t, event.Get("type").Str, "m.room.redaction", "type of "+event.Raw)
						return nil
					}),
				}})
			})
		}
	}

	t.Run("Only the stay that the ban ended is redacted", func(t *testing.T) {
		mallory := deployment.Register(t, "hs1", helpers.RegistrationOpts{})
		roomID := alice.MustCreateRoom(t, map[string]interface{}{"preset": "public_chat"})
		mallory.MustJoinRoom(t, roomID, nil)
		before := say(t, mallory, roomID, "A")
		mallory.MustLeaveRoom(t, roomID)
		mallory.MustJoinRoom(t, roomID, nil)
		during := say(t, mallory, roomID, "D")
		must.MatchSuccess(t, remove(t, alice, roomID, "ban", mallory.UserID, map[string]interface{}{flag: true}))
		must.MatchSuccess(t, remove(t, alice, roomID, "unban", mallory.UserID, nil))
		mallory.MustJoinRoom(t, roomID, nil)
		after := say(t, mallory, roomID, "sorry")

		must.Equal(t, isRedactedBy(alice.MustGetEvent(t, roomID, before), alice.UserID), false, "an earlier stay")
		must.Equal(t, isRedactedBy(alice.MustGetEvent(t, roomID, during), alice.UserID), true, "the stay")
		must.Equal(t, isRedactedBy(alice.MustGetEvent(t, roomID, after), alice.UserID), false, "a later stay")
	})

	t.Run("Without the power to redact the flag is ignored", func(t *testing.T) {
		mallory := deployment.Register(t, "hs1", helpers.RegistrationOpts{})
		roomID := alice.MustCreateRoom(t, map[string]interface{}{
			"preset": "public_chat",
			"power_level_content_override": map[string]interface{}{
				"users":  map[string]interface{}{alice.UserID: 100, bob.UserID: 50},
				"redact": 60,
			},
		})
		bob.MustJoinRoom(t, roomID, nil)
		mallory.MustJoinRoom(t, roomID, nil)
		said := say(t, mallory, roomID, "an opinion")
		must.MatchSuccess(t, remove(t, bob, roomID, "ban", mallory.UserID, map[string]interface{}{flag: true}))
		must.MatchGJSON(t, alice.MustGetEvent(t, roomID, said), match.JSONKeyEqual("content.body", "an opinion"))
		must.MatchGJSON(t, alice.MustGetStateEventContent(t, roomID, "m.room.member", mallory.UserID),
			match.JSONKeyEqual("membership", "ban"))
	})

	t.Run("A flag that is no boolean is refused", func(t *testing.T) {
		mallory := deployment.Register(t, "hs1", helpers.RegistrationOpts{})
		roomID := alice.MustCreateRoom(t, map[string]interface{}{"preset": "public_chat"})
		mallory.MustJoinRoom(t, roomID, nil)
		must.MatchResponse(t, remove(t, alice, roomID, "kick", mallory.UserID, map[string]interface{}{flag: "yes"}),
			match.HTTPResponse{StatusCode: 400, JSON: []match.JSON{match.JSONKeyEqual("errcode", "M_BAD_JSON")}})
	})

	t.Run("Leaving by oneself redacts nothing", func(t *testing.T) {
		mallory := deployment.Register(t, "hs1", helpers.RegistrationOpts{})
		roomID := alice.MustCreateRoom(t, map[string]interface{}{"preset": "public_chat"})
		mallory.MustJoinRoom(t, roomID, nil)
		said := say(t, mallory, roomID, "goodbye")
		mallory.MustDo(t, "PUT", []string{"_matrix", "client", "v3", "rooms", roomID, "state", "m.room.member", mallory.UserID},
			client.WithJSONBody(t, map[string]interface{}{"membership": "leave", flag: true}))
		must.MatchGJSON(t, alice.MustGetEvent(t, roomID, said), match.JSONKeyEqual("content.body", "goodbye"))
	})
}

// What the target's server held back until after the ban is redacted before anybody gets it from us.
func TestLateEventsAreRedacted(t *testing.T) {
	deployment := complement.Deploy(t, 1)
	defer deployment.Destroy(t)
	alice := deployment.Register(t, "hs1", helpers.RegistrationOpts{})
	srv := federation.NewServer(t, deployment,
		federation.HandleKeyRequests(),
		federation.HandleTransactionRequests(nil, nil),
	)
	srv.UnexpectedRequestsAreErrors = false
	cancel := srv.Listen()
	defer cancel()
	mallory, witness := srv.UserID("mallory"), srv.UserID("witness")

	roomID := alice.MustCreateRoom(t, map[string]interface{}{"preset": "public_chat"})
	hs1 := deployment.GetFullyQualifiedHomeserverName(t, "hs1")
	room := srv.MustJoinRoom(t, deployment, hs1, roomID, mallory)
	join := srv.MustCreateEvent(t, room, federation.Event{
		Type: "m.room.member", Sender: witness, StateKey: b.Ptr(witness),
		Content: map[string]interface{}{"membership": "join"},
	})
	room.AddEvent(join)
	srv.MustSendTransaction(t, deployment, hs1, []json.RawMessage{join.JSON()}, nil)
	alice.MustSyncUntil(t, client.SyncReq{}, client.SyncJoinedTo(witness, roomID))

	late := srv.MustCreateEvent(t, room, federation.Event{
		Type: "m.room.message", Sender: mallory,
		Content: map[string]interface{}{"msgtype": "m.text", "body": "late spam"},
	})
	must.MatchSuccess(t, remove(t, alice, roomID, "ban", mallory, map[string]interface{}{flag: true}))
	srv.MustSendTransaction(t, deployment, hs1, []json.RawMessage{late.JSON()}, nil)

	req := fclient.NewFederationRequest("GET", srv.ServerName(), hs1, "/_matrix/federation/v1/event/"+url.PathEscape(late.EventID()))
	res, err := srv.DoFederationRequest(t.Context(), t, deployment, req)
	must.NotError(t, "GET /event", err)
	if res.StatusCode == http.StatusNotFound {
		return // A server need not give away what it soft-failed.
	}
	body := must.ParseJSON(t, res.Body)
	must.Equal(t, len(body.Get("pdus.0.content").Map()), 0, "keys of the content in "+body.Raw)
}
