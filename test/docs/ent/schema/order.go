// Package schema has what the client in package ent is generated from, by go generate ./docs/ent.
package schema

import (
	"entgo.io/ent"
	"entgo.io/ent/schema/field"
)

// Order is a row of the table orders.
type Order struct{ ent.Schema }

// Fields implements ent.Interface.
func (Order) Fields() []ent.Field { return []ent.Field{field.String("id")} }
